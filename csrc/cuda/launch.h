// Launches of kernels, and the number of blocks of a kernel that a device runs at a time. nvcc
// compiles this file. With ADAPRUNER_EMULATE any C++ compiler does, with the emulator of CUDA on
// its include path.
#pragma once

#ifdef ADAPRUNER_EMULATE
#include "emulation/cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "plan.h"

namespace adapruner::cuda {

// Throws std::runtime_error for an error, and clears it. Otherwise torch, which reads the last
// error after its own launches, would report it as its own.
inline void check(cudaError_t error, const char* what = "a call of the CUDA runtime failed") {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("adapruner: ") + what + ": " + cudaGetErrorString(error));
}

// A number for each kernel, device and block size. The runtime is asked for it once.
class PerKernel {
 public:
  template <typename Find>
  int operator()(const void* kernel, int threads, size_t shared_bytes, const Find& find) {
    int device = 0;
    check(cudaGetDevice(&device));
    const std::tuple key{kernel, device, threads, shared_bytes};
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(key);
    if (found != known_.end()) return found->second;
    return known_.emplace(key, find()).first->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::tuple<const void*, int, int, size_t>, int> known_;
};

// Bytes of shared memory that a block of the current device can have.
inline int most_block_shared() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

// Allows the blocks of a kernel to use all shared memory there is. So the limit is set once. If it
// were set at each launch, another thread of the host could lower it before the launch.
inline void allow_shared_memory(const void* kernel, size_t bytes) {
  constexpr size_t kUnasked = 40 * 1024;  // always allowed: 48 KB with static shared memory
  if (bytes <= kUnasked) return;
  static PerKernel limits;
  limits(kernel, 0, 0, [&] {
    cudaFuncAttributes of{};
    check(cudaFuncGetAttributes(&of, kernel));
    const int most = most_block_shared() - static_cast<int>(of.sharedSizeBytes);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    return most;
  });
}

// Number of blocks of a kernel that a multiprocessor runs at a time.
template <typename... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, size_t shared_bytes = 0) {
  const auto* const address = reinterpret_cast<const void*>(kernel);
  allow_shared_memory(address, shared_bytes);
  static PerKernel blocks;
  return blocks(address, threads, shared_bytes, [&] {
    int found = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&found, kernel, threads, shared_bytes));
    return std::max(found, 1);
  });
}

// Launches a kernel. All launches go through here. An empty grid launches nothing. Throws
// std::runtime_error if CUDA refuses the launch.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const auto* const address = reinterpret_cast<const void*>(kernel);
  allow_shared_memory(address, shared_bytes);
#ifdef ADAPRUNER_EMULATE
  (void)stream;
  const cudaError_t error =
      emulation::launch(address, grid, block, shared_bytes, [&] { kernel(arguments...); });
#else
  const cudaError_t error = [&](Parameters... values) {
    void* pointers[] = {static_cast<void*>(&values)...};
    return cudaLaunchKernel(address, grid, block, pointers, shared_bytes, stream);
  }(static_cast<Parameters>(arguments)...);
#endif
  check(error, "a CUDA kernel was not launched");
}

// Launches as many blocks as `units` of work need, with `per_block` units at a time, but not more
// than the device runs at a time. Each block goes on in strides of the grid.
template <typename... Parameters, typename... Arguments>
void launch_strided(void (*kernel)(Parameters...), int64_t units, int64_t per_block,
                    int multiprocessors, int threads, cudaStream_t stream, Arguments... arguments) {
  const unsigned blocks =
      strided_blocks(units, per_block, multiprocessors, resident_blocks(kernel, threads));
  launch(kernel, blocks, static_cast<unsigned>(threads), 0, stream, arguments...);
}

}  // namespace adapruner::cuda
