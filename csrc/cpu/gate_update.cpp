#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../checks.h"
#include "../math/gate.h"
#include "batch.h"
#include "simd/gate_step.h"
#include "simd/topk.h"

namespace adapruner::cpu {
namespace {

// The distinct ids of a batch, in the order of their first appearance, each with the sum of its
// pressures in batch order. A hash table with linear probing. Takes O(B) time and memory for any N.
class Visits {
 public:
  struct Visit {
    int64_t id;
    double pressure;
  };

  explicit Visits(int64_t capacity) {
    size_t size = 16;
    while (size < 2 * static_cast<size_t>(capacity)) size *= 2;
    slots_.assign(size, -1);
    visits_.reserve(capacity);
  }

  void add(int64_t id, double pressure) {
    size_t slot = (static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u >> 20) & (slots_.size() - 1);
    while (slots_[slot] >= 0 && visits_[slots_[slot]].id != id) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    if (slots_[slot] >= 0) {
      visits_[slots_[slot]].pressure += pressure;
    } else {
      slots_[slot] = static_cast<int64_t>(visits_.size());
      visits_.push_back({id, pressure});
    }
  }

  const std::vector<Visit>& visits() const { return visits_; }

 private:
  std::vector<int64_t> slots_;  // −1, or an index of visits_
  std::vector<Visit> visits_;
};

void note_not_finite(int64_t* state, int64_t id) {
  const int64_t count = state[kNotFiniteCount]++;
  if (count >= 0 && count < kNotFiniteCapacity) state[kNotFiniteIds + count] = id;
}

// False for a sample that has ignored rows only.
bool has_loss(double pressure) { return std::fabs(pressure) != HUGE_VAL; }

struct LossSum {
  double sum;
  int64_t count;
};

// Sums the finite losses of a batch.
template <typename Pressure>
LossSum sum_losses(const Pressure* pressure, const double* loss, int64_t samples) {
  double lanes[kLossLanes] = {};
  int64_t count = 0;
  for (int64_t begin = 0; begin < samples; begin += kLossLanes) {
    const int64_t n = std::min<int64_t>(kLossLanes, samples - begin);
#pragma omp simd reduction(+ : count)
    for (int64_t j = 0; j < n; ++j) {
      const bool counted = has_loss(pressure[begin + j]) && is_finite(loss[begin + j]);
      lanes[j] += counted ? loss[begin + j] : 0.0;
      count += counted;
    }
  }
  for (int half = kLossLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return {lanes[0], count};
}

// Adds the losses to the sums of the epoch, updates the loss scale if it follows them, and notes
// the last loss of each sample.
void note_losses(const int64_t* id, const double* pressure, const double* loss, int64_t samples,
                 int64_t* state, float* last_loss) {
  for (int64_t b = 0; last_loss != nullptr && b < samples; ++b) {
    if (has_loss(pressure[b])) last_loss[id[b]] = static_cast<float>(loss[b]);
  }
  const LossSum of_batch = sum_losses(pressure, loss, samples);
  const double sum = read_double(state, kLossSum) + of_batch.sum;
  state[kLossCount] += of_batch.count;
  write_double(state, kLossSum, sum);
  if (state[kScaleRunning] && sum > 0) {
    write_double(state, kLossScale, sum / static_cast<double>(state[kLossCount]));
  }
}

void step_gates(const std::vector<Visits::Visit>& visits, float* m, uint8_t* ages, int64_t* state) {
  float logits[kGateBlock];
  uint8_t waited[kGateBlock];
  double pressures[kGateBlock];
  const double slope = read_double(state, kSlope);
  const int64_t count = static_cast<int64_t>(visits.size());
  int64_t before[2] = {0, 0}, after[2] = {0, 0};
  for (int64_t begin = 0; begin < count; begin += kGateBlock) {
    const int64_t n = std::min(kGateBlock, count - begin);
    for (int64_t j = 0; j < n; ++j) {
      const Visits::Visit& visit = visits[begin + j];
      logits[j] = m[visit.id];
      waited[j] = ages[visit.id];
      pressures[j] = visit.pressure;
    }
    ADAPRUNER_DISPATCH(sum_gates, logits, n, slope, before);
    ADAPRUNER_DISPATCH(step_block, state, logits, waited, pressures, n);
    ADAPRUNER_DISPATCH(sum_gates, logits, n, slope, after);
    for (int64_t j = 0; j < n; ++j) {
      m[visits[begin + j].id] = logits[j];
      ages[visits[begin + j].id] = 0;
    }
  }
  state[kGateSum] += after[0] - before[0];
  state[kOpenCount] += after[1] - before[1];
}

// The gate, age and last loss of an id are rarely in a cache. Requesting all of them first lets the
// memory accesses overlap.
void prefetch(const int64_t* id, int64_t samples, const float* m, const uint8_t* ages,
              const float* last_loss) {
  for (int64_t b = 0; b < samples; ++b) {
    __builtin_prefetch(m + id[b], 1);
    __builtin_prefetch(ages + id[b], 1);
    if (last_loss != nullptr) __builtin_prefetch(last_loss + id[b], 1);
  }
}

void gate_update_cpu(at::Tensor& gate_logits, at::Tensor& age, at::Tensor& state,
                     const std::optional<at::Tensor>& last_loss, const at::Tensor& ids,
                     const at::Tensor& pressure, const at::Tensor& sample_loss) {
  check_gate_update(gate_logits, age, state, last_loss, ids, pressure, sample_loss);
  const int64_t samples = ids.size(0);
  const at::Tensor id_tensor = checked_ids(ids, gate_logits.size(0));
  const at::Tensor pressures = pressure.to(at::kDouble).contiguous();
  const at::Tensor losses = sample_loss.to(at::kDouble).contiguous();
  const int64_t* id = id_tensor.const_data_ptr<int64_t>();
  const double* p = pressures.const_data_ptr<double>();
  uint8_t* ages = age.mutable_data_ptr<uint8_t>();
  int64_t* s = state.mutable_data_ptr<int64_t>();

  float* m = gate_logits.mutable_data_ptr<float>();
  float* last = last_loss.has_value() ? last_loss->mutable_data_ptr<float>() : nullptr;

  prefetch(id, samples, m, ages, last);
  note_losses(id, p, losses.const_data_ptr<double>(), samples, s, last);
  Visits visits(samples);
  for (int64_t b = 0; b < samples; ++b) {
    if (std::isfinite(p[b])) {
      visits.add(id[b], p[b]);
      continue;
    }
    if (std::isnan(p[b])) note_not_finite(s, id[b]);
    if (!s[kResting] && ages[id[b]] == kNeverVisited) ages[id[b]] = 1;
  }
  if (!s[kResting]) step_gates(visits.visits(), m, ages, s);
}

void first_loss_scale_cpu(at::Tensor& pressure, at::Tensor& state, const at::Tensor& sample_loss) {
  check_first_loss_scale(pressure, state, sample_loss);
  int64_t* s = state.mutable_data_ptr<int64_t>();
  if (!s[kScaleRunning] || s[kLossCount] != 0) return;
  const at::Tensor losses = sample_loss.to(at::kDouble).contiguous();
  const double* loss = losses.const_data_ptr<double>();
  float* p = pressure.mutable_data_ptr<float>();
  const LossSum of_batch = sum_losses(p, loss, losses.numel());
  if (!(of_batch.sum > 0)) return;
  write_double(s, kLossScale, of_batch.sum / static_cast<double>(of_batch.count));
  const double balance = balance_pressure(s);
  for (int64_t b = 0; b < losses.numel(); ++b) {
    if (has_loss(p[b])) p[b] = sample_pressure(s, balance, loss[b], true);
  }
}

void gate_drift_cpu(at::Tensor& gate_logits, const at::Tensor& age, const at::Tensor& state,
                    const at::Tensor& last_loss) {
  check_gate_drift(gate_logits, age, state, last_loss);
  float* m = gate_logits.mutable_data_ptr<float>();
  const uint8_t* ages = age.const_data_ptr<uint8_t>();
  const float* losses = last_loss.const_data_ptr<float>();
  const int64_t* s = state.const_data_ptr<int64_t>();
  if (s[kResting]) return;
  const double balance = balance_pressure(s);
  at::parallel_for(0, gate_logits.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (ages[i] == 0 || ages[i] == kNeverVisited || !std::isfinite(losses[i])) continue;
      m[i] = stepped(s, m[i], 0, pressure(s, balance, losses[i]));
    }
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) {
  m.impl("first_loss_scale", first_loss_scale_cpu);
  m.impl("gate_update", gate_update_cpu);
  m.impl("gate_drift", gate_drift_cpu);
}

}  // namespace adapruner::cpu
