// What the ATen side of every CUDA operator needs: the device of its tensors made current, its
// stream, its size.
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

// Of a dtype that check_floats lets pass.
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
