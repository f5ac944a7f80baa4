#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "../columns.h"
#include "../math/cross_entropy.h"
#include "batch.h"
#include "cross_entropy_batch.h"
#include "huge_pages.h"

namespace adapruner::cpu {
namespace {

// Losses of a batch from contiguous logits [B, ..., C], or [B, C, ...] with `columns`. Writes the
// gradient in the same layout, unless `gradient` is null. It may overwrite the logits.
template <typename T>
Losses compute(const CrossEntropyBatch& batch, const at::Tensor& logits, bool columns,
               T* gradient) {
  using A = Acc<T>;
  constexpr double kStored = std::is_same_v<T, c10::Half> ? kHalfGradientScale : 1.0;
  const int64_t rows = batch.rows, all = batch.samples * rows;
  const int64_t* target = batch.target.const_data_ptr<int64_t>();
  std::vector<A> row_scale(all), row_loss(all);
  std::vector<double> sums(batch.samples);
  for (int64_t b = 0; b < batch.samples; ++b) sums[b] = kStored * batch.row_scale(b);
  for (int64_t b = 0; b < batch.samples; ++b) {
    for (int64_t i = b * rows; i < (b + 1) * rows; ++i) {
      row_scale[i] = target[i] == batch.ignore_index ? A(-1) : static_cast<A>(sums[b]);
    }
  }
  each_row(batch, logits.const_data_ptr<T>(), target, row_scale.data(), all, columns ? rows : 0,
           row_loss.data(), gradient);
  for (int64_t b = 0; b < batch.samples; ++b) {
    double sum = 0;
    for (int64_t i = b * rows; i < (b + 1) * rows; ++i) sum += row_loss[i];
    sums[b] = sum;
  }
  return losses_of<A>(batch, sums);
}

at::Tensor classes_last(const at::Tensor& logits) {
  return logits.dim() == 2 ? logits : logits.movedim(1, -1);
}

CrossEntropyBatch prepare(const at::Tensor& logits, const at::Tensor& target, const at::Tensor& ids,
                          const at::Tensor& gate_logits, const at::Tensor& state,
                          const std::optional<at::Tensor>& weight, int64_t ignore_index,
                          double label_smoothing) {
  check_cross_entropy(logits, target, ids, gate_logits, state, weight, label_smoothing);
  return make_batch(loss_type(logits), logits.size(1), target, ids, gate_logits, state, weight,
                    ignore_index, label_smoothing);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> masked_cross_entropy_cpu(
    const at::Tensor& logits, const at::Tensor& target, const at::Tensor& ids,
    const at::Tensor& gate_logits, const at::Tensor& state, const std::optional<at::Tensor>& weight,
    int64_t ignore_index, double label_smoothing, bool compute_gradient) {
  const CrossEntropyBatch batch =
      prepare(logits, target, ids, gate_logits, state, weight, ignore_index, label_smoothing);
  const bool columns = has_columns(logits);
  const at::Tensor rows = columns ? logits : classes_last(logits).contiguous();
  at::Tensor gradient = at::detail::empty_cpu(
      compute_gradient ? rows.sizes() : at::IntArrayRef({0}), logits.scalar_type());
  if (compute_gradient) {
    advise_huge_pages(gradient);
    if (!columns && logits.dim() > 2) gradient = gradient.movedim(-1, 1);
  }
  Losses out;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, logits.scalar_type(), "masked_cross_entropy", [&] {
        out = compute<scalar_t>(batch, rows, columns,
                                compute_gradient ? gradient.mutable_data_ptr<scalar_t>() : nullptr);
      });
  return {out.loss, out.sample_loss, out.pressure, gradient};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_cross_entropy__cpu(
    at::Tensor& logits, const at::Tensor& target, const at::Tensor& ids,
    const at::Tensor& gate_logits, const at::Tensor& state, const std::optional<at::Tensor>& weight,
    int64_t ignore_index, double label_smoothing) {
  const CrossEntropyBatch batch =
      prepare(logits, target, ids, gate_logits, state, weight, ignore_index, label_smoothing);
  const bool columns = has_columns(logits);
  const at::Tensor last = columns ? logits : classes_last(logits);
  const at::Tensor rows = last.contiguous();  // no copy if it is contiguous
  Losses out;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, logits.scalar_type(), "masked_cross_entropy_",
      [&] { out = compute<scalar_t>(batch, rows, columns, rows.mutable_data_ptr<scalar_t>()); });
  if (!last.is_contiguous()) last.copy_(rows);
  return {out.loss, out.sample_loss, out.pressure};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) {
  m.impl("masked_cross_entropy", masked_cross_entropy_cpu);
  m.impl("masked_cross_entropy_", masked_cross_entropy__cpu);
}

}  // namespace adapruner::cpu
