#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../checks.h"
#include "batch.h"
#include "huge_pages.h"
#include "simd/cross_entropy.h"

namespace adapruner::cpu {
namespace {

struct Arguments {
  int64_t samples, rows, classes;  // B, R rows per sample, C
  at::Tensor logits;               // [B, ..., C], contiguous: the same memory where it can be
  at::Tensor target;               // [B, ...] int64 contiguous
  at::Tensor ids;                  // [B] int64 contiguous
  at::Tensor gate_logits;
  at::Tensor state;
  std::optional<at::Tensor> weight;
  int64_t ignore_index;
  double label_smoothing;
};

struct Losses {
  at::Tensor loss, sample_loss, pressure;
};

// Targets checked, and the number of rows of each sample that are not ignored.
std::vector<int64_t> count_rows(const Arguments& a) {
  const int64_t* target = a.target.const_data_ptr<int64_t>();
  std::vector<int64_t> counts(a.samples, 0);
  for (int64_t b = 0; b < a.samples; ++b) {
    for (int64_t i = b * a.rows; i < (b + 1) * a.rows; ++i) {
      if (target[i] == a.ignore_index) continue;
      TORCH_CHECK_INDEX(target[i] >= 0 && target[i] < a.classes, "target[", b, "] (row ",
                        i - b * a.rows, " of the sample) is ", target[i],
                        "; expected a class in [0, ", a.classes, ") or ignore_index ",
                        a.ignore_index);
      ++counts[b];
    }
  }
  return counts;
}

// Losses of a batch, and the gradient into `gradient` ([B, ..., C] contiguous; may share the memory
// of a.logits; null: not wanted).
template <typename T>
Losses compute(const Arguments& a, T* gradient) {
  using A = Acc<T>;
  const int64_t samples = a.samples, rows = a.rows, classes = a.classes;
  const auto options = a.logits.options().dtype(c10::CppTypeToScalarType<A>::value);
  Losses out{at::empty({}, options), at::empty({samples}, options),
             at::empty({samples}, options.dtype(at::kFloat))};

  const std::vector<int64_t> counts = count_rows(a);
  const int64_t* target = a.target.const_data_ptr<int64_t>();
  const int64_t* ids = a.ids.const_data_ptr<int64_t>();
  const at::Tensor gates = a.gate_logits.contiguous();
  const float* gate_logits = gates.const_data_ptr<float>();
  const int64_t* state = a.state.const_data_ptr<int64_t>();

  std::vector<double> weights(samples);
  std::vector<A> row_scale(samples * rows), row_loss(samples * rows);
  for (int64_t b = 0; b < samples; ++b) {
    weights[b] = sample_weight(state, gate_logits[ids[b]]);
    const double scale = weights[b] / static_cast<double>(samples) /
                         static_cast<double>(std::max<int64_t>(counts[b], 1));
    for (int64_t i = b * rows; i < (b + 1) * rows; ++i) {
      row_scale[i] = target[i] == a.ignore_index ? A(-1) : static_cast<A>(scale);
    }
  }

  at::Tensor class_weight;
  CrossEntropyRows<T> work{};
  if (a.weight.has_value()) {
    class_weight = a.weight->to(options.dtype()).contiguous();
    work.class_weight = class_weight.const_data_ptr<A>();
    work.total_weight = class_weight.sum().template item<A>();
  } else {
    work.total_weight = static_cast<A>(classes);
  }
  work.logits = a.logits.const_data_ptr<T>();
  work.targets = target;
  work.row_scale = row_scale.data();
  work.smoothing = a.label_smoothing;
  work.classes = classes;
  work.row_loss = row_loss.data();
  work.gradient = gradient;
  constexpr int64_t kGrain = 16384;  // elements worth a thread
  at::parallel_for(0, samples * rows, std::max<int64_t>(1, kGrain / classes),
                   [&](int64_t begin, int64_t end) {
                     ADAPRUNER_DISPATCH(cross_entropy_rows, work, begin, end);
                   });

  const double balance = balance_pressure(state);
  A* sample_loss = out.sample_loss.mutable_data_ptr<A>();
  float* pressures = out.pressure.mutable_data_ptr<float>();
  double total = 0;
  for (int64_t b = 0; b < samples; ++b) {
    double sum = 0;
    for (int64_t i = b * rows; i < (b + 1) * rows; ++i) sum += row_loss[i];
    const double loss = counts[b] == 0 ? 0.0 : sum / static_cast<double>(counts[b]);
    sample_loss[b] = static_cast<A>(loss);
    pressures[b] = sample_pressure(state, balance, loss, counts[b] != 0);
    total += weights[b] * loss;
  }
  *out.loss.mutable_data_ptr<A>() =
      static_cast<A>(samples == 0 ? 0.0 : total / static_cast<double>(samples));
  return out;
}

at::Tensor classes_last(const at::Tensor& logits) {
  return logits.dim() == 2 ? logits : logits.movedim(1, -1);
}

Arguments prepare(const at::Tensor& logits, const at::Tensor& target, const at::Tensor& ids,
                  const at::Tensor& gate_logits, const at::Tensor& state,
                  const std::optional<at::Tensor>& weight, int64_t ignore_index,
                  double label_smoothing) {
  check_cross_entropy(logits, target, ids, gate_logits, state, weight, label_smoothing);
  const int64_t samples = logits.size(0);
  return {samples,
          samples == 0 ? 0 : target.numel() / samples,
          logits.size(1),
          classes_last(logits).contiguous(),
          target.to(at::kLong).contiguous(),
          checked_ids(ids, gate_logits.size(0)),
          gate_logits,
          state,
          weight,
          ignore_index,
          label_smoothing};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> masked_cross_entropy_cpu(
    const at::Tensor& logits, const at::Tensor& target, const at::Tensor& ids,
    const at::Tensor& gate_logits, const at::Tensor& state, const std::optional<at::Tensor>& weight,
    int64_t ignore_index, double label_smoothing, bool compute_gradient) {
  const Arguments a =
      prepare(logits, target, ids, gate_logits, state, weight, ignore_index, label_smoothing);
  at::Tensor gradient = at::empty({0}, logits.options());
  if (compute_gradient) {
    gradient = at::empty(a.logits.sizes(), logits.options());
    advise_huge_pages(gradient);
    if (logits.dim() > 2) gradient = gradient.movedim(-1, 1);
  }
  Losses out;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, logits.scalar_type(), "masked_cross_entropy", [&] {
        out = compute<scalar_t>(a,
                                compute_gradient ? gradient.mutable_data_ptr<scalar_t>() : nullptr);
      });
  return {out.loss, out.sample_loss, out.pressure, gradient};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_cross_entropy__cpu(
    at::Tensor& logits, const at::Tensor& target, const at::Tensor& ids,
    const at::Tensor& gate_logits, const at::Tensor& state, const std::optional<at::Tensor>& weight,
    int64_t ignore_index, double label_smoothing) {
  const Arguments a =
      prepare(logits, target, ids, gate_logits, state, weight, ignore_index, label_smoothing);
  Losses out;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, logits.scalar_type(), "masked_cross_entropy_",
      [&] { out = compute<scalar_t>(a, a.logits.mutable_data_ptr<scalar_t>()); });
  if (const at::Tensor last = classes_last(logits); !last.is_contiguous()) last.copy_(a.logits);
  return {out.loss, out.sample_loss, out.pressure};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) {
  m.impl("masked_cross_entropy", masked_cross_entropy_cpu);
  m.impl("masked_cross_entropy_", masked_cross_entropy__cpu);
}

}  // namespace adapruner::cpu
