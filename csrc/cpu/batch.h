// What the loss operators share on the CPU: ids, weights and pressures of a batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>

#include "../math/gate.h"

namespace adapruner::cpu {

// A contiguous int64 version of ids, checked against the number of gates.
inline at::Tensor checked_ids(const at::Tensor& ids, int64_t gates) {
  const at::Tensor result = ids.to(at::kLong).contiguous();
  const int64_t* values = result.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < result.numel(); ++b) {
    TORCH_CHECK_INDEX(values[b] >= 0 && values[b] < gates, "ids[", b, "] is ", values[b],
                      "; expected a dataset index in [0, ", gates, ")");
  }
  return result;
}

// The dtype of the losses of a tensor of this dtype.
inline at::ScalarType loss_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// The pressure that goes out for a sample: NaN for a loss that is not finite, +inf for no rows.
inline float sample_pressure(const int64_t* state, double balance, double loss, bool any_row) {
  if (!any_row) return std::numeric_limits<float>::infinity();
  if (!std::isfinite(loss)) return std::numeric_limits<float>::quiet_NaN();
  return static_cast<float>(pressure(state, balance, loss));
}

}  // namespace adapruner::cpu
