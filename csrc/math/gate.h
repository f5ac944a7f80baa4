// Gates: their values, the pressure on them, their step. Notation of docs/method.md.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "exp.h"
#include "log.h"
#include "platform.h"
#include "state.h"

namespace adapruner {

constexpr double kLossEpsilon = 1e-5;       // ε of log(ℓ + ε)
constexpr double kFixedOne = 1073741824.0;  // 2³⁰, the fixed point of gate sums

// s = σ(k·m) in (0, 1], 1 from k·m ≈ 37 on; m = −inf gives 0 to within 1e−304.
ADAPRUNER_HD inline double gate(double slope, double gate_logit) {
  return 1.0 / (1.0 + exp_clamped(-slope * gate_logit));
}

// round(s·2³⁰), half to even: summed as integers, so that no order of additions matters.
ADAPRUNER_HD inline int64_t gate_fixed(double slope, float gate_logit) {
  constexpr double kMagic =
      6755399441055744.0;  // 1.5·2⁵²: the sum's low bits are the rounded value
  const double shifted = gate(slope, gate_logit) * kFixedOne + kMagic;
  int64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  return bits - 0x4338000000000000;  // the bits of kMagic
}

// Weight of a sample in the training loss.
ADAPRUNER_HD inline double sample_weight(const int64_t* state, float gate_logit) {
  return state[kResting] ? 1.0 : gate(read_double(state, kSlope), gate_logit);
}

// 2λ·(s̄ − r) with λ = C + γ·|ρ − r|: the part of the pressure that all samples share. 0 without
// gates.
ADAPRUNER_HD inline double balance_pressure(const int64_t* state) {
  const double population = static_cast<double>(state[kPopulation]);
  if (population <= 0) return 0.0;
  const double ratio = read_double(state, kKeepRatio);
  const double mean_gate = static_cast<double>(state[kGateSum]) / kFixedOne / population;
  const double open_share = static_cast<double>(state[kOpenCount]) / population;
  const double lambda = read_double(state, kBalance) +
                        read_double(state, kBalanceGain) * std::fabs(open_share - ratio);
  return 2.0 * lambda * (mean_gate - ratio);
}

// Pressure of a finite ℓ ≥ 0: ℓ' − w·log(ℓ' + ε) + 2λ·(s̄ − r), with ℓ' = ℓ / loss scale.
ADAPRUNER_HD inline double pressure(const int64_t* state, double balance, double loss) {
  const double scaled = loss / read_double(state, kLossScale);
  return scaled - read_double(state, kEasyWeight) * log_positive(scaled + kLossEpsilon) + balance;
}

// The pressure that goes out for a sample: NaN for a loss that is not finite, +inf for no rows.
ADAPRUNER_HD inline float sample_pressure(const int64_t* state, double balance, double loss,
                                          bool any_row) {
  const bool finite = std::fabs(loss) <= std::numeric_limits<double>::max();
  const float value = static_cast<float>(pressure(state, balance, loss));
  const float of_rows = finite ? value : std::numeric_limits<float>::quiet_NaN();
  return any_row ? of_rows : std::numeric_limits<float>::infinity();
}

// a, the epochs that a visit stands for: 1 for a first visit and within an epoch, capped.
ADAPRUNER_HD inline double visit_span(const int64_t* state, uint8_t age) {
  if (age == kNeverVisited || age <= 1) return 1.0;
  return age < state[kAgeCap] ? static_cast<double>(age) : static_cast<double>(state[kAgeCap]);
}

// m after a visit: m − η·a·k·s·(1 − s)·pressure.
ADAPRUNER_HD inline float stepped(const int64_t* state, float gate_logit, uint8_t age,
                                  double pressure) {
  const double slope = read_double(state, kSlope);
  const double s = gate(slope, gate_logit);
  return static_cast<float>(gate_logit - read_double(state, kStepSize) * visit_span(state, age) *
                                             slope * s * (1.0 - s) * pressure);
}

}  // namespace adapruner
