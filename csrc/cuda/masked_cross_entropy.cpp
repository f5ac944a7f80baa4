#include "masked_cross_entropy.h"

#include <torch/library.h>

#include "../checks.h"
#include "../columns.h"
#include "../math/cross_entropy.h"
#include "loss_call.h"

namespace adapruner::cuda {
namespace {

// Strides of logits [B, C, ...] whose rows are at equal distances in memory, and in which either
// the classes or the rows lie side by side. Nothing for other logits.
std::optional<Strides> strides_of(const at::Tensor& logits) {
  const int64_t classes = logits.size(1);
  int64_t rows = 1, apart = 1;
  for (int64_t d = logits.dim() - 1; d >= 2; --d) {
    if (logits.size(d) == 1) continue;
    if (rows == 1) apart = logits.stride(d);
    if (logits.stride(d) != apart * rows) return {};
    rows *= logits.size(d);
  }
  const Strides strides{logits.stride(0), apart, classes == 1 ? 1 : logits.stride(1)};
  if (strides.one != 1 && (rows == 1 || strides.row != 1)) return {};
  return strides;
}

// True if the kernels can read these logits without a copy. The CPU decides in the same way.
bool is_usable(const at::Tensor& logits) {
  const auto strides = strides_of(logits);
  return has_columns(logits) || (strides && strides->one == 1);
}

// True if no two values of usable logits share memory.
bool are_apart(const at::Tensor& logits, int64_t rows) {
  if (logits.is_contiguous()) return true;
  const Strides strides = *strides_of(logits);
  const int64_t sample = (rows - 1) * strides.row + logits.size(1);  // from first to last value
  return (rows == 1 || strides.row >= logits.size(1)) &&
         (logits.size(0) == 1 || strides.sample >= sample);
}

at::Tensor classes_last(const at::Tensor& logits) {
  return logits.movedim(1, -1).contiguous().movedim(-1, 1);
}

// gradient: undefined if it is not wanted. May be the logits.
Losses compute(CrossEntropyCall& call, const at::Tensor& logits, const at::Tensor& gradient) {
  CrossEntropyBatch& batch = call.batch;
  if (batch.samples == 0 || batch.rows == 0) return call.empty();
  const Context context(logits);
  const Strides strides = *strides_of(logits);
  CrossEntropyRows<void> rows{logits.const_data_ptr(), nullptr, strides, strides, 0};
  if (gradient.defined()) {
    rows.gradient = gradient.mutable_data_ptr();
    rows.gradient_strides = *strides_of(gradient);
  }
  if (logits.scalar_type() == at::kHalf) batch.unit_scale *= kHalfGradientScale;
  const auto plan = plan_cross_entropy(batch.samples, batch.rows, batch.classes,
                                       static_cast<int>(logits.element_size()), strides.one != 1,
                                       batch.unit_terms.smooth_weight != 0, device_size(context));
  call.allocate(plan.units, plan.prepared);
  begin_cross_entropy(batch, plan, context.stream);
  cross_entropy_rows(type_of(logits), batch, plan, rows, 0, plan.units, context.stream);
  return call.losses;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> masked_cross_entropy_cuda(
    const at::Tensor& logits, const at::Tensor& target, const at::Tensor& ids,
    const at::Tensor& gate_logits, const at::Tensor& state, const std::optional<at::Tensor>& weight,
    int64_t ignore_index, double label_smoothing, bool compute_gradient) {
  check_cross_entropy(logits, target, ids, gate_logits, state, weight, label_smoothing);
  CrossEntropyCall call(loss_type(logits), logits.size(1), target, ids, gate_logits, state, weight,
                        ignore_index, label_smoothing);
  const bool columns = has_columns(logits);
  const at::Tensor read = is_usable(logits) ? logits : classes_last(logits);
  at::Tensor gradient;
  if (compute_gradient) {
    const at::Tensor shape = columns ? logits : logits.movedim(1, -1);
    gradient = at::empty(shape.sizes(), logits.options());
    if (!columns) gradient = gradient.movedim(-1, 1);
  }
  const Losses out = compute(call, read, gradient);
  if (!compute_gradient) gradient = at::empty({0}, logits.options());
  return {out.loss, out.sample_loss, out.pressure, gradient};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_cross_entropy__cuda(
    at::Tensor& logits, const at::Tensor& target, const at::Tensor& ids,
    const at::Tensor& gate_logits, const at::Tensor& state, const std::optional<at::Tensor>& weight,
    int64_t ignore_index, double label_smoothing) {
  check_cross_entropy(logits, target, ids, gate_logits, state, weight, label_smoothing);
  CrossEntropyCall call(loss_type(logits), logits.size(1), target, ids, gate_logits, state, weight,
                        ignore_index, label_smoothing);
  const bool usable = is_usable(logits) && are_apart(logits, call.batch.rows);
  const at::Tensor written = usable ? logits : classes_last(logits);
  const Losses out = compute(call, written, written);
  if (!usable) logits.copy_(written);
  return {out.loss, out.sample_loss, out.pressure};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) {
  m.impl("masked_cross_entropy", masked_cross_entropy_cuda);
  m.impl("masked_cross_entropy_", masked_cross_entropy__cuda);
}

}  // namespace adapruner::cuda
