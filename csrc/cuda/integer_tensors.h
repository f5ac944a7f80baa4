// csrc/cuda/integers.h for tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include "../integers.h"
#include "integers.h"

namespace adapruner::cuda {

// tensor: a result of native_integers.
inline Integers integers_of(const at::Tensor& tensor) {
  using Type = Integers::Type;
  switch (tensor.scalar_type()) {
    case at::kByte:
      return {tensor.const_data_ptr(), Type::kUint8};
    case at::kChar:
      return {tensor.const_data_ptr(), Type::kInt8};
    case at::kShort:
      return {tensor.const_data_ptr(), Type::kInt16};
    case at::kInt:
      return {tensor.const_data_ptr(), Type::kInt32};
    default:
      return {tensor.const_data_ptr<int64_t>(), Type::kInt64};  // throws for any other dtype
  }
}

}  // namespace adapruner::cuda
