// Gates: their values, their pressures, and their updates. The notation is that of docs/method.md.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "exp.h"
#include "log.h"
#include "platform.h"
#include "state.h"

namespace adapruner {

constexpr double kLossEpsilon = 1e-5;       // ε of log(ℓ + ε)
constexpr double kFixedOne = 1073741824.0;  // 2³⁰: gates are summed in fixed point
constexpr double kSteepest = 1e20;          // gate sums clamp the slope to ±kSteepest

// The losses of a batch are summed in this many lanes. Loss b goes to lane b % kLossLanes. Then the
// lanes are added in pairs, the upper half to the lower half. A loop over vectors and a warp give
// the same bits.
constexpr int kLossLanes = 32;

ADAPRUNER_HD inline bool is_finite(double x) {
  return std::fabs(x) <= std::numeric_limits<double>::max();
}

// s = σ(k·m) in (0, 1]. It is 1 from k·m ≈ 37 on. For m = −inf it is 0 to within 1e−304.
ADAPRUNER_HD inline double gate(double slope, double gate_logit) {
  return 1.0 / (1.0 + exp_clamped(-slope * gate_logit));
}

// s·2³⁰ as an integer, to within 0.53. Sums of integers do not depend on the order of the
// additions. This takes far fewer operations than `gate`. IEEE +, −, ×, ÷ and comparisons give the
// same bits on every instruction set. With z = −k·m·log₂e = n + f, |f| ≤ ½:
//   s = 1/(1 + 2ⁿ·2ᶠ)
//   2ᶠ = (1 + t)/(1 − t),  t = tanh(f·ln 2/2) ≈ f·p(f²)/q(f²) = a/q
//   s = (q − a)/((q − a) + 2ⁿ·(q + a))
// One division serves both quotients. p and q were fitted for the least relative error of 2ᶠ, which
// is 9.4e−11.
ADAPRUNER_HD inline int64_t gate_fixed(double slope, float gate_logit) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5·2⁵²: a sum's low bits are the rounded value
  // For |z| ≥ 63, s rounds to 0 or 1, so |m| can be clamped. The minimum compares integers, because
  // compilers turn a minimum of floats into a branch.
  slope = slope > kSteepest ? kSteepest : slope < -kSteepest ? -kSteepest : slope;
  const double bound = 44.0 / std::fabs(slope);
  const float limit = bound < 1e38 ? static_cast<float>(bound) : 1e38f;
  uint32_t logit, furthest;
  std::memcpy(&logit, &gate_logit, sizeof logit);
  std::memcpy(&furthest, &limit, sizeof furthest);
  const uint32_t magnitude = logit & 0x7fffffffu;
  logit = (logit & 0x80000000u) | (magnitude < furthest ? magnitude : furthest);
  float m;
  std::memcpy(&m, &logit, sizeof m);
  const double z = slope * -1.4426950408889634 * static_cast<double>(m);
  const double shifted = z + kMagic;
  const double f = z - (shifted - kMagic);
  const double square = f * f;
  const double q = 20.818923796590678 + square;
  const double a = f * (7.215289152391617 + 0.057690072323966064 * square);
  const double open = q - a, upper = q + a;
  int64_t exponent, bits;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  std::memcpy(&bits, &upper, sizeof bits);
  bits += static_cast<int64_t>(static_cast<uint64_t>(exponent) << 52);  // times 2ⁿ
  double closed;
  std::memcpy(&closed, &bits, sizeof closed);
  const double rounded = open * kFixedOne / (open + closed) + kMagic;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits - 0x4338000000000000;  // the bits of kMagic
}

// True if every sample has weight 1 in the training loss. The loss is then the plain mean.
ADAPRUNER_HD inline bool weights_are_one(const int64_t* state) {
  return state[kResting] != 0 || state[kPlain] != 0;
}

// Weight of a sample in the training loss.
ADAPRUNER_HD inline double sample_weight(const int64_t* state, float gate_logit) {
  return weights_are_one(state) ? 1.0 : gate(read_double(state, kSlope), gate_logit);
}

// 2λ·(s̄ − r) with λ = C + γ·|ρ − r|. This part of the pressure is the same for all samples. It is
// 0 if there are no gates.
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

// Pressure for a finite ℓ ≥ 0: min(ℓ' − w·log(ℓ' + ε), cap) + 2λ·(s̄ − r), with ℓ' = ℓ / loss
// scale.
ADAPRUNER_HD inline double pressure(const int64_t* state, double balance, double loss) {
  const double scaled = loss / read_double(state, kLossScale);
  const double of_loss =
      scaled - read_double(state, kEasyWeight) * log_positive(scaled + kLossEpsilon);
  const double cap = read_double(state, kPressureCap);
  return (of_loss < cap ? of_loss : cap) + balance;
}

// Rounding can make a given loss of 0 negative, a Kullback-Leibler divergence for example. Such a loss
// counts as 0. A loss below −kLossRounding, or the same for a half type, is an error.
constexpr double kLossRounding = 1e-6;
constexpr double kFloat16LossRounding = 8.0 / 1024;  // 8 units in the last place at 1
constexpr double kBFloat16LossRounding = 8.0 / 128;  // likewise

ADAPRUNER_HD inline double without_rounding(double loss, double rounding) {
  return loss < 0 && loss >= -rounding ? 0.0 : loss;
}

// The pressure that an operator returns for a sample: NaN for a loss that is not finite, +inf for a
// sample without rows.
ADAPRUNER_HD inline float sample_pressure(const int64_t* state, double balance, double loss,
                                          bool any_row) {
  const bool finite = is_finite(loss);
  const float value = static_cast<float>(pressure(state, balance, loss));
  const float of_rows = finite ? value : std::numeric_limits<float>::quiet_NaN();
  return any_row ? of_rows : std::numeric_limits<float>::infinity();
}

// a, the number of epochs that a visit stands for: 1 for a first visit and for a second visit
// within an epoch, otherwise the age, at most kAgeCap.
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
