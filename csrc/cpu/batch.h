// Ids and dtypes that the loss operators share on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include "../integers.h"

namespace adapruner::cpu {

// The ids as contiguous int64. An id that is not in [0, gates) is an IndexError.
inline at::Tensor checked_ids(const at::Tensor& ids, int64_t gates) {
  const at::Tensor result = as_int64(ids);
  const int64_t* values = result.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < result.numel(); ++b) {
    TORCH_CHECK_INDEX(values[b] >= 0 && values[b] < gates, "ids[", b,
                      "] must be a dataset index in [0, ", gates, "); found ", values[b]);
  }
  return result;
}

// The dtype of the losses for a tensor of this dtype.
inline at::ScalarType loss_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace adapruner::cpu
