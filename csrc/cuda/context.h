// The device, stream and size that every CUDA operator needs. A Context makes the device of a
// tensor current.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "types.h"

namespace adapruner::cuda {

class Context {
 public:
  explicit Context(const at::Tensor& tensor) : guard_(tensor.device()) {
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                                          guard_.current_device().index()));
    stream = c10::cuda::getCurrentCUDAStream();
  }

  cudaStream_t stream;
  int multiprocessors;

 private:
  c10::cuda::CUDAGuard guard_;
};

// The type of a tensor whose dtype check_floats accepts.
inline Type type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return Type::kDouble;
    case at::kBFloat16:
      return Type::kBFloat16;
    case at::kHalf:
      return Type::kHalf;
    default:
      return Type::kFloat;
  }
}

}  // namespace adapruner::cuda
