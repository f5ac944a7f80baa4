// csrc/math/{exp,gate,state}.h compared with the standard library in long double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "../../csrc/math/gate.h"
#include "check.h"
#include "numbers.h"

namespace {

using namespace adapruner;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// A state with ordinary constants and the sums of `m`.
struct State {
  int64_t slots[kStateSize] = {};

  explicit State(const std::vector<float>& m = {}, double slope = 1.3, double ratio = 0.7) {
    write_double(slots, kSlope, slope);
    write_double(slots, kKeepRatio, ratio);
    write_double(slots, kBalance, 1.0);
    write_double(slots, kBalanceGain, 50.0);
    write_double(slots, kEasyWeight, 1.0);
    write_double(slots, kPressureCap, kInfinity);
    write_double(slots, kStepSize, 0.05);
    write_double(slots, kLossScale, 1.0);
    slots[kAgeCap] = 16;
    slots[kPopulation] = static_cast<int64_t>(m.size());
    for (float x : m) {
      slots[kGateSum] += gate_fixed(slope, x);
      slots[kOpenCount] += x > 0;
    }
  }
};

Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }

void exp2_of_a_fraction_in_exact_arithmetic() {
  Real worst = 0;
  for (int i = -100000; i <= 100000; ++i) {
    const Real f = i / 200000.0L;
    worst = std::max(worst, relative_error(exp2_fraction(f), std::exp2(f)));
  }
  CHECK(worst <= 1.1e-7L);
  CHECK_EQUAL(exp2_fraction(0.0f), 1.0f);
}

void exp_nonpositive_is_as_close_as_it_says() {
  // Every 211th float from −0 down to −87: all exponents, and subnormal numbers.
  for (uint32_t bits = bits_of(-0.0f); bits <= bits_of(-87.0f); bits += 211) {
    const float x = from_bits(bits);
    const Real bound = 3e-7L + std::fabs(static_cast<Real>(x)) * 1e-7L;
    if (!near(exp_nonpositive(x), std::exp(static_cast<Real>(x)), bound)) {
      CHECK_EQUAL(exp_nonpositive(x), std::exp(x));
      break;
    }
  }
  CHECK(near(exp_nonpositive(-87.0f), std::exp(-87.0L), 1e-5L));
}

void exp_nonpositive_at_its_ends() {
  CHECK_EQUAL(exp_nonpositive(0.0f), 1.0f);
  CHECK_EQUAL(exp_nonpositive(-0.0f), 1.0f);
  CHECK_EQUAL(exp_nonpositive(-std::numeric_limits<float>::denorm_min()), 1.0f);
  for (float x : {std::nextafter(-87.0f, -kInfinity), -88.0f, -100.0f, -104.0f, -1e4f, -1e30f,
                  std::numeric_limits<float>::lowest(), -kInfinity}) {
    CHECK(exp_nonpositive(x) >= 0 && exp_nonpositive(x) <= exp_nonpositive(-87.0f));
  }
  CHECK_EQUAL(exp_nonpositive(-kInfinity), 0.0f);
  CHECK(std::isnan(exp_nonpositive(kNaN)));
  CHECK(std::isnan(exp_nonpositive(-kNaN)));
}

void exp_clamped_is_as_close_as_it_says() {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> anywhere(-700, 700), middle(-2, 2);
  for (int i = 0; i < 300000; ++i) {
    for (double x : {anywhere(random), middle(random)}) {
      CHECK(near(exp_clamped(x), std::exp(static_cast<Real>(x)), 1e-15L));
    }
  }
  CHECK_EQUAL(exp_clamped(0.0), 1.0);
  for (double x : {700.0, 701.0, 1e300, static_cast<double>(kInfinity)}) {
    CHECK_EQUAL(exp_clamped(x), exp_clamped(700.0));
    CHECK_EQUAL(exp_clamped(-x), exp_clamped(-700.0));
  }
  CHECK(near(exp_clamped(700.0), std::exp(700.0L), 1e-15L));
  CHECK(near(exp_clamped(-700.0), std::exp(-700.0L), 1e-15L));
  CHECK(std::isnan(exp_clamped(static_cast<double>(kNaN))));
}

void sample_pressures_at_their_ends() {
  const State state({0.5f, -1.0f});
  CHECK_EQUAL(sample_pressure(state.slots, 0.25, 1.5, true),
              static_cast<float>(pressure(state.slots, 0.25, 1.5)));
  CHECK(std::isfinite(sample_pressure(state.slots, 0.25, 0.0, true)));
  for (double loss : {static_cast<double>(kInfinity), static_cast<double>(kNaN)}) {
    CHECK(std::isnan(sample_pressure(state.slots, 0.25, loss, true)));
    CHECK_EQUAL(sample_pressure(state.slots, 0.25, loss, false), kInfinity);
  }
  CHECK_EQUAL(sample_pressure(state.slots, 0.25, 0.0, false), kInfinity);
}

void gates_are_sigmoids() {
  std::mt19937 random(2);
  std::normal_distribution<float> logits(0, 20);
  for (double slope : {0.1, 1.0, 5.0}) {
    for (int i = 0; i < 30000; ++i) {
      const float m = logits(random);
      const Real expected = sigmoid(static_cast<Real>(slope) * m);
      // The product k·m is rounded. An error of |k·m| units goes into the exponential.
      const Real bound = 1e-15L + 1.2e-16L * std::fabs(static_cast<Real>(slope) * m);
      CHECK(near(gate(slope, m), expected, bound));
    }
    CHECK_EQUAL(gate(slope, 0.0f), 0.5);
    CHECK_EQUAL(gate(slope, -0.0f), 0.5);
    CHECK(gate(slope, -kInfinity) > 0 && gate(slope, -kInfinity) <= 1e-304);
    CHECK_EQUAL(gate(slope, kInfinity), 1.0);
    CHECK(gate(slope, std::numeric_limits<float>::lowest()) > 0);
    CHECK_EQUAL(gate(slope, std::numeric_limits<float>::max()), 1.0);
    CHECK(std::isnan(gate(slope, kNaN)));
  }
}

void fixed_gates_are_gates_to_half_a_unit() {
  std::mt19937 random(3);
  std::normal_distribution<float> logits(0, 1);
  for (double slope : {0.1, 1.0, 5.0, 40.0, -3.0}) {
    Real worst = 0, sum = 0;
    constexpr int kCount = 1000000;
    for (int i = 0; i < kCount; ++i) {
      const float m = logits(random);
      const Real error = gate_fixed(slope, m) - sigmoid(slope * static_cast<Real>(m)) * kFixedOne;
      worst = std::max(worst, std::fabs(error));
      sum += error;
    }
    CHECK(worst <= 0.53L);
    CHECK(std::fabs(sum / kCount) <= 0.01L);  // no drift: rounding errors cancel
  }
}

void fixed_gates_at_their_ends() {
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr float kLeast = std::numeric_limits<float>::denorm_min();
  constexpr int64_t kOne = int64_t{1} << 30;
  for (double slope : {1e-3, 0.1, 5.0, 1e15, 1e30, 1e300}) {
    CHECK_EQUAL(gate_fixed(slope, -kInfinity), 0);
    CHECK_EQUAL(gate_fixed(slope, -kMax), 0);
    CHECK_EQUAL(gate_fixed(slope, kInfinity), kOne);
    CHECK_EQUAL(gate_fixed(slope, kMax), kOne);
    CHECK_EQUAL(gate_fixed(-slope, kMax), 0);
    CHECK_EQUAL(gate_fixed(slope, 0.0f), kOne / 2);
    CHECK_EQUAL(gate_fixed(slope, -0.0f), kOne / 2);
    CHECK_EQUAL(gate_fixed(slope, kLeast), kOne / 2);
  }
  for (float m : {-kInfinity, -kMax, 0.0f, 1.0f, kInfinity}) {
    CHECK_EQUAL(gate_fixed(0.0, m), kOne / 2);
    CHECK_EQUAL(gate_fixed(1e-300, m), kOne / 2);
  }
  for (double slope : {0.5, 5.0}) {  // where gates saturate, and at the clamp of m
    for (float x = 19.0f; x < 50.0f; x += 0.25f) {
      const float m = x / static_cast<float>(slope);
      const Real closed = sigmoid(slope * static_cast<Real>(-m)) * kFixedOne;
      CHECK(std::fabs(gate_fixed(slope, -m) - closed) <= 0.53L);
      CHECK(std::fabs(kOne - gate_fixed(slope, m) - closed) <= 0.53L);
    }
  }
}

void fixed_gates_never_fall_as_logits_rise() {
  std::mt19937 random(4);
  std::normal_distribution<float> logits(0, 3);
  std::vector<float> m(20000);
  for (float& x : m) x = logits(random);
  std::sort(m.begin(), m.end());
  for (size_t i = 1; i < m.size(); ++i) CHECK(gate_fixed(5.0, m[i - 1]) <= gate_fixed(5.0, m[i]));
}

void sums_of_fixed_gates_need_no_order_and_no_correction() {
  std::mt19937 random(5);
  std::normal_distribution<float> logits(0, 3);
  std::vector<float> m(100000);
  for (float& x : m) x = logits(random);
  const auto sum = [&] {
    return std::accumulate(m.begin(), m.end(), int64_t{0},
                           [](int64_t all, float x) { return all + gate_fixed(1.3, x); });
  };
  const int64_t forward = sum();
  std::shuffle(m.begin(), m.end(), random);
  CHECK_EQUAL(sum(), forward);
  Real mean = 0;
  for (float x : m) mean += sigmoid(static_cast<Real>(1.3) * x);
  const Real size = static_cast<Real>(m.size());
  CHECK(std::fabs(forward / (kFixedOne * size) - mean / size) <= 0.5L / kFixedOne);
  // Updates of the sums by differences give exactly the sums of a recount.
  int64_t kept_up = forward;
  for (float& x : m) {
    const float after = x - 0.1f * logits(random);
    kept_up += gate_fixed(1.3, after) - gate_fixed(1.3, x);
    x = after;
  }
  CHECK_EQUAL(sum(), kept_up);
}

void weights_are_gates_and_one_in_warm_up() {
  State state;
  CHECK_EQUAL(sample_weight(state.slots, 0.5f), gate(1.3, 0.5f));
  state.slots[kResting] = 1;
  for (float m : {-kInfinity, -3.0f, 0.0f, 100.0f}) CHECK_EQUAL(sample_weight(state.slots, m), 1.0);
}

void weights_are_one_of_a_plain_mean_whose_gates_step() {
  State gated, plain;
  plain.slots[kPlain] = 1;
  for (float m : {-kInfinity, -3.0f, 0.0f, 100.0f}) {
    CHECK_EQUAL(sample_weight(plain.slots, m), 1.0);
    CHECK_EQUAL(stepped(plain.slots, m, 3, 0.7), stepped(gated.slots, m, 3, 0.7));
  }
  CHECK_EQUAL(pressure(plain.slots, 0.25, 0.3), pressure(gated.slots, 0.25, 0.3));
}

void balance_follows_its_formula() {
  const std::vector<float> m = {1.0f, -1.0f, 2.0f, 0.0f, -0.5f};
  for (double ratio : {0.1, 0.7, 1.0}) {
    const State state(m, 1.3, ratio);
    Real mean = 0;
    for (float x : m) mean += sigmoid(static_cast<Real>(1.3) * x) / m.size();
    const Real lambda = 1 + 50 * std::fabs(2 / 5.0L - ratio);
    CHECK(std::fabs(balance_pressure(state.slots) - 2 * lambda * (mean - ratio)) < 1e-7L);
  }
  CHECK_EQUAL(balance_pressure(State().slots), 0.0);  // no gates
}

void pressure_follows_its_formula() {
  State state;
  write_double(state.slots, kEasyWeight, 0.2);
  write_double(state.slots, kLossScale, 3.0);
  for (double loss : {0.0, 1e-12, 1e-5, 0.3, 1.0, 50.0, 1e30}) {
    const Real scaled = static_cast<Real>(loss) / 3;
    const Real expected = scaled - 0.2L * std::log(scaled + 1e-5L) + 0.25L;
    CHECK(near(pressure(state.slots, 0.25, loss), expected, 1e-14L));
    write_double(state.slots, kPressureCap, 2.2);
    const Real capped = std::min<Real>(expected - 0.25L, 2.2) + 0.25L;
    CHECK(near(pressure(state.slots, 0.25, loss), capped, 1e-14L));
    write_double(state.slots, kPressureCap, kInfinity);
  }
  CHECK(std::isfinite(pressure(state.slots, 0, 0)));
}

void a_visit_spans_the_epochs_since_the_last_one() {
  State state;
  const std::pair<uint8_t, double> spans[] = {
      {kNeverVisited, 1}, {0, 1}, {1, 1}, {2, 2}, {15, 15}, {16, 16}, {17, 16}, {kOldest, 16}};
  for (const auto& [age, span] : spans) CHECK_EQUAL(visit_span(state.slots, age), span);
  state.slots[kAgeCap] = 1;
  for (int age = 0; age < 256; ++age) {
    CHECK_EQUAL(visit_span(state.slots, static_cast<uint8_t>(age)), 1.0);
  }
}

void a_step_follows_its_formula() {
  std::mt19937 random(6);
  std::normal_distribution<float> logits(0, 2);
  for (double slope : {0.1, 5.0}) {
    const State state({}, slope);
    for (int i = 0; i < 10000; ++i) {
      const float m = logits(random);
      const double push = logits(random) * 3;
      const uint8_t age = static_cast<uint8_t>(random());
      const Real s = sigmoid(static_cast<Real>(slope) * m);
      const Real step = 0.05L * visit_span(state.slots, age) * slope * s * (1 - s) * push;
      const Real expected = m - step;
      const Real found = stepped(state.slots, m, age, push);
      CHECK(std::fabs(found - expected) <= 6.1e-8L * std::fabs(expected) + 1e-14L);
    }
    CHECK_EQUAL(stepped(state.slots, 0.7f, 0, 0.0), 0.7f);
    CHECK_EQUAL(stepped(state.slots, -kInfinity, 5, -100.0), -kInfinity);  // stays closed
    CHECK(std::isfinite(stepped(state.slots, 300.0f, 16, 1e30)));
    CHECK(std::isfinite(stepped(state.slots, -300.0f, 16, -1e30)));
  }
}

void the_state_holds_doubles_bit_for_bit() {
  State state;
  for (double value : {0.0, -0.0, 0.1, 5.0, -1e300, 4.9e-324, static_cast<double>(kInfinity)}) {
    write_double(state.slots, kLossSum, value);
    const double back = read_double(state.slots, kLossSum);
    CHECK(std::memcmp(&back, &value, sizeof value) == 0);
  }
  write_double(state.slots, kLossSum, static_cast<double>(kNaN));
  CHECK(std::isnan(read_double(state.slots, kLossSum)));
  CHECK_EQUAL(state.slots[kLossCount], 0);  // the neighbour is untouched
}

void slots_and_ages_are_apart() {
  const std::set<int> slots = {
      kSlope,        kGateSum,    kOpenCount,    kPopulation, kKeepRatio, kBalance,
      kBalanceGain,  kEasyWeight, kPressureCap,  kStepSize,   kAgeCap,    kResting,
      kPlain,        kLossScale,  kScaleRunning, kLossSum,    kLossCount, kNotFiniteCount,
      kNotFiniteIds, kErrorKind,  kErrorPlace,   kErrorValue, kErrorLatch};
  CHECK_EQUAL(slots.size(), 23u);
  CHECK_EQUAL(*slots.begin(), 0);
  CHECK_EQUAL(*slots.rbegin(), kStateSize - 1);
  CHECK_EQUAL(kErrorKind, kNotFiniteIds + kNotFiniteCapacity);
  CHECK(kOldest < kNeverVisited);
}

}  // namespace

int main() {
  exp2_of_a_fraction_in_exact_arithmetic();
  exp_nonpositive_is_as_close_as_it_says();
  exp_nonpositive_at_its_ends();
  exp_clamped_is_as_close_as_it_says();
  sample_pressures_at_their_ends();
  gates_are_sigmoids();
  fixed_gates_are_gates_to_half_a_unit();
  fixed_gates_at_their_ends();
  fixed_gates_never_fall_as_logits_rise();
  sums_of_fixed_gates_need_no_order_and_no_correction();
  weights_are_gates_and_one_in_warm_up();
  weights_are_one_of_a_plain_mean_whose_gates_step();
  balance_follows_its_formula();
  pressure_follows_its_formula();
  a_visit_spans_the_epochs_since_the_last_one();
  a_step_follows_its_formula();
  the_state_holds_doubles_bit_for_bit();
  slots_and_ages_are_apart();
  return check::failures() == 0 ? 0 : 1;
}
