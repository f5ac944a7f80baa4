#include "cross_entropy_batch.h"

#include <ATen/ops/empty.h>

#include "batch.h"

namespace adapruner::cpu {
namespace {

// Targets checked, and the number of rows of each sample that are not ignored.
std::vector<int64_t> count_rows(const CrossEntropyBatch& batch) {
  const int64_t* target = batch.target.const_data_ptr<int64_t>();
  std::vector<int64_t> counts(batch.samples, 0);
  for (int64_t b = 0; b < batch.samples; ++b) {
    for (int64_t i = b * batch.rows; i < (b + 1) * batch.rows; ++i) {
      if (target[i] == batch.ignore_index) continue;
      TORCH_CHECK_INDEX(target[i] >= 0 && target[i] < batch.classes, "target[", b, "] (row ",
                        i - b * batch.rows, " of the sample) is ", target[i],
                        "; expected a class in [0, ", batch.classes, ") or ignore_index ",
                        batch.ignore_index);
      ++counts[b];
    }
  }
  return counts;
}

}  // namespace

CrossEntropyBatch make_batch(const at::TensorOptions& options, int64_t classes,
                             const at::Tensor& target, const at::Tensor& ids,
                             const at::Tensor& gate_logits, const at::Tensor& state,
                             const std::optional<at::Tensor>& weight, int64_t ignore_index,
                             double label_smoothing) {
  CrossEntropyBatch batch{};
  batch.samples = target.size(0);
  batch.rows = batch.samples == 0 ? 0 : target.numel() / batch.samples;
  batch.classes = classes;
  batch.target = target.to(at::kLong).contiguous();
  batch.state = state;
  batch.total_weight = static_cast<double>(classes);
  if (weight.has_value()) {
    batch.class_weight = weight->to(options.dtype()).contiguous();
    batch.total_weight = batch.class_weight.sum().item<double>();
  }
  batch.label_smoothing = label_smoothing;
  batch.ignore_index = ignore_index;

  const at::Tensor checked = checked_ids(ids, gate_logits.size(0));
  batch.counts = count_rows(batch);
  const at::Tensor gates = gate_logits.contiguous();
  const int64_t* id = checked.const_data_ptr<int64_t>();
  const float* m = gates.const_data_ptr<float>();
  const int64_t* slots = state.const_data_ptr<int64_t>();
  batch.weights.resize(batch.samples);
  for (int64_t b = 0; b < batch.samples; ++b) {
    batch.weights[b] = sample_weight(slots, m[id[b]]);
  }
  return batch;
}

template <typename A>
Losses losses_of(const CrossEntropyBatch& batch, const at::TensorOptions& options,
                 const std::vector<double>& sums) {
  const auto type = c10::CppTypeToScalarType<A>::value;
  Losses out{at::empty({}, options.dtype(type)), at::empty({batch.samples}, options.dtype(type)),
             at::empty({batch.samples}, options.dtype(at::kFloat))};
  const int64_t* state = batch.state.const_data_ptr<int64_t>();
  const double balance = balance_pressure(state);
  A* sample_loss = out.sample_loss.mutable_data_ptr<A>();
  float* pressures = out.pressure.mutable_data_ptr<float>();
  double total = 0;
  for (int64_t b = 0; b < batch.samples; ++b) {
    const int64_t count = batch.counts[b];
    const double loss = count == 0 ? 0.0 : sums[b] / static_cast<double>(count);
    sample_loss[b] = static_cast<A>(loss);
    pressures[b] = sample_pressure(state, balance, loss, count != 0);
    total += batch.weights[b] * loss;
  }
  *out.loss.mutable_data_ptr<A>() =
      static_cast<A>(batch.samples == 0 ? 0.0 : total / static_cast<double>(batch.samples));
  return out;
}

template Losses losses_of<float>(const CrossEntropyBatch&, const at::TensorOptions&,
                                 const std::vector<double>&);
template Losses losses_of<double>(const CrossEntropyBatch&, const at::TensorOptions&,
                                  const std::vector<double>&);

}  // namespace adapruner::cpu
