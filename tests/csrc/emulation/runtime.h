// CUDA's runtime calls for the emulator. There is one device. A test can count its calls and make
// them fail.
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <map>
#include <utility>

#include "fibers.h"
#include "types.h"

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorLaunchOutOfResources = 701
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};

namespace emulation {

constexpr int kMostSharedBytes = 227 * 1024;
constexpr int kUnaskedSharedBytes = 48 * 1024;
constexpr int kResidentBlocks = 3;  // on a multiprocessor, of any kernel

struct Runtime {
  cudaError_t last_error = cudaSuccess;
  cudaError_t next_launch = cudaSuccess;  // result of the next launch
  std::map<const void*, int> limits;      // limits of dynamic shared memory that were set
  int limits_set = 0, launches = 0, memsets = 0, copies = 0, waits = 0;  // numbers of calls
};

inline Runtime& runtime() {
  static Runtime only;
  return only;
}

inline cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                          std::function<void()> body) {
  Runtime& r = runtime();
  ++r.launches;
  const auto limit = r.limits.find(kernel);
  const int most = limit == r.limits.end() ? kUnaskedSharedBytes : limit->second;
  cudaError_t error = std::exchange(r.next_launch, cudaSuccess);
  if (static_cast<int>(shared_bytes) > most) error = cudaErrorInvalidValue;
  if (error == cudaSuccess) {
    run(grid, block, shared_bytes, std::move(body));
  } else {
    r.last_error = error;
  }
  return error;
}

}  // namespace emulation

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the emulator";
}
inline cudaError_t cudaGetLastError() {
  return std::exchange(emulation::runtime().last_error, cudaSuccess);
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulation::kMostSharedBytes;
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {0};  // static shared memory is not counted
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  emulation::runtime().limits[kernel] = bytes;
  ++emulation::runtime().limits_set;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = emulation::kResidentBlocks;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t = nullptr) {
  ++emulation::runtime().memsets;
  if (bytes > 0) std::memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  ++emulation::runtime().copies;
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++emulation::runtime().waits;
  return cudaSuccess;
}
