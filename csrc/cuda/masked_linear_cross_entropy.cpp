#include <ATen/core/Tensor.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/masked_fill.h>
#include <torch/library.h>

#include "../checks.h"
#include "../linear_chunks.h"
#include "../linear_products.h"
#include "loss_call.h"
#include "masked_cross_entropy.h"

namespace adapruner::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The logits of a chunk take at most kScratchBytes, or have kLeastRows rows if these take more.
// With fewer rows, multiprocessors would be idle and the weight would be read too often.
constexpr int64_t kScratchBytes = int64_t{256} << 20;
constexpr int64_t kLeastRows = 512;

// Only the device knows which rows are ignored. So chunks contain all rows. The gradient of an
// ignored row is 0. Its input is set to 0 in the product with the gradient, because 0 times inf or
// NaN is NaN.
Losses run(CrossEntropyCall& call, const Tensor& input, const Tensor& target, int64_t ignore_index,
           at::ScalarType type, LinearProducts& products, LinearProducts::Wanted wanted) {
  CrossEntropyBatch& batch = call.batch;
  const int64_t all = batch.samples * batch.rows;
  if (all == 0) {
    products.allocate(0, 0, wanted, true);
    return call.empty();
  }
  const Context context(input);
  const auto bytes = static_cast<int>(at::elementSize(type));
  const int64_t size = chunk_rows(all, batch.classes * bytes, kScratchBytes, kLeastRows);
  const auto plan = plan_cross_entropy(batch.samples, batch.rows, batch.classes, bytes, false,
                                       batch.unit_terms.smooth_weight != 0, device_size(context),
                                       ceil_div(all, size));
  const int64_t step = std::max<int64_t>(size / plan.unit_rows, 1);  // units of a chunk
  const auto first_row = [&](int64_t unit) {
    if (unit >= plan.units) return all;
    const UnitRows rows = rows_of(plan, batch.samples, batch.rows, unit);
    return rows.sample * batch.rows + rows.first;
  };
  call.allocate(plan.units, plan.prepared);
  products.allocate(ceil_div(plan.units, step), std::min(step * plan.unit_rows, all), wanted, true);
  // int64, because a negative ignore_index would be a label in an unsigned type.
  const Tensor ignored = at::eq(as_int64(target).view({all, 1}), ignore_index);
  const Strides strides{batch.rows * batch.classes, batch.classes, 1};
  begin_cross_entropy(batch, plan, context.stream);
  for (int64_t begin = 0; begin < plan.units; begin += step) {
    const int64_t end = std::min(begin + step, plan.units);
    const int64_t row = first_row(begin), n = first_row(end) - row;
    const Tensor x = input.narrow(0, row, n).to(type);
    const Tensor logits = products.logits(x);
    void* values = logits.mutable_data_ptr();
    cross_entropy_rows(type_of(logits), batch, plan,
                       {values, wanted.any() ? values : nullptr, strides, strides, row}, begin, end,
                       context.stream);
    // From here on `logits` holds the gradient.
    products.add_input_gradient(logits, row);
    if (wanted.weight || wanted.bias) {
      products.add_weight_gradient(logits, x.masked_fill(ignored.narrow(0, row, n), 0), begin == 0);
    }
  }
  return call.losses;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_linear_cross_entropy_cuda(
    const Tensor& input, const Tensor& linear_weight, const OptionalTensor& linear_bias,
    const Tensor& target, const Tensor& ids, const Tensor& gate_logits, const Tensor& state,
    const OptionalTensor& weight, int64_t ignore_index, double label_smoothing,
    bool compute_input_gradient, bool compute_weight_gradient, bool compute_bias_gradient) {
  check_linear_cross_entropy(input, linear_weight, linear_bias, target, ids, gate_logits, state,
                             weight, label_smoothing);
  CrossEntropyCall call(loss_type(input), linear_weight.size(0), target, ids, gate_logits, state,
                        weight, ignore_index, label_smoothing);
  const Tensor rows = input.contiguous().view({target.numel(), input.size(-1)});
  const LinearProducts::Wanted wanted{compute_input_gradient, compute_weight_gradient,
                                      compute_bias_gradient && linear_bias.has_value()};
  // float16 rounds the gradients of small probabilities to 0.
  const auto type = input.scalar_type() == at::kHalf ? at::kFloat : input.scalar_type();
  LinearProducts products(rows, linear_weight, linear_bias, type, loss_type(input),
                          [](const Tensor&) {});
  const Losses losses = run(call, rows, target, ignore_index, type, products, wanted);
  return {losses.loss,
          losses.sample_loss,
          losses.pressure,
          products.input_gradient(input.sizes()),
          products.weight_gradient(),
          products.bias_gradient()};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) {
  m.impl("masked_linear_cross_entropy", masked_linear_cross_entropy_cuda);
}

}  // namespace adapruner::cuda
