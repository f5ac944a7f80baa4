#include "cross_entropy_batch.h"

#include <ATen/EmptyTensor.h>

#include <type_traits>

#include "../math/gate.h"
#include "batch.h"
#include "simd/samples.h"

namespace adapruner::cpu {
namespace {

// Checks the targets. Returns the number of rows of each sample that are not ignored.
std::vector<int64_t> count_rows(const CrossEntropyBatch& batch) {
  const int64_t* target = batch.target.const_data_ptr<int64_t>();
  std::vector<int64_t> counts(batch.samples, 0);
  for (int64_t b = 0; b < batch.samples; ++b) {
    for (int64_t i = b * batch.rows; i < (b + 1) * batch.rows; ++i) {
      if (target[i] == batch.ignore_index) continue;
      TORCH_CHECK_INDEX(target[i] >= 0 && target[i] < batch.classes, "target[", b, "] (row ",
                        i - b * batch.rows, " of the sample) must be a class in [0, ",
                        batch.classes, ") or ignore_index ", batch.ignore_index, "; found ",
                        target[i]);
      ++counts[b];
    }
  }
  return counts;
}

}  // namespace

CrossEntropyBatch make_batch(at::ScalarType type, int64_t classes, const at::Tensor& target,
                             const at::Tensor& ids, const at::Tensor& gate_logits,
                             const at::Tensor& state, const std::optional<at::Tensor>& weight,
                             int64_t ignore_index, double label_smoothing) {
  CrossEntropyBatch batch{};
  batch.samples = target.size(0);
  batch.rows = batch.samples == 0 ? 0 : target.numel() / batch.samples;
  batch.classes = classes;
  batch.target = as_int64(target);
  batch.state = state;
  batch.total_weight = static_cast<double>(classes);
  if (weight.has_value()) {
    batch.class_weight = weight->to(type).contiguous();
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
  ADAPRUNER_DISPATCH(sample_weights, slots, m, id, batch.samples, batch.weights.data());
  return batch;
}

template <typename A>
Losses losses_of(const CrossEntropyBatch& batch, const std::vector<double>& sums) {
  constexpr auto kType = c10::CppTypeToScalarType<A>::value;
  const int64_t samples = batch.samples;
  Losses out{at::detail::empty_cpu({}, kType), at::detail::empty_cpu({samples}, kType),
             at::detail::empty_cpu({samples}, at::kFloat)};
  const int64_t* state = batch.state.const_data_ptr<int64_t>();
  std::vector<double> losses(samples);
  const SampleLosses work{state,
                          balance_pressure(state),
                          sums.data(),
                          batch.counts.data(),
                          std::is_same_v<A, float>,
                          losses.data(),
                          out.pressure.mutable_data_ptr<float>()};
  ADAPRUNER_DISPATCH(sample_losses, work, samples);
  A* sample_loss = out.sample_loss.mutable_data_ptr<A>();
  double total = 0;
  for (int64_t b = 0; b < samples; ++b) {
    sample_loss[b] = static_cast<A>(losses[b]);
    total += batch.weights[b] * losses[b];
  }
  *out.loss.mutable_data_ptr<A>() =
      static_cast<A>(samples == 0 ? 0.0 : total / static_cast<double>(samples));
  return out;
}

template Losses losses_of<float>(const CrossEntropyBatch&, const std::vector<double>&);
template Losses losses_of<double>(const CrossEntropyBatch&, const std::vector<double>&);

}  // namespace adapruner::cpu
