// Nanoseconds per value of the formulas in csrc/math/, in loops as the kernels have them: one
// thread, values in cache, median and quartiles of many runs. Needs neither torch nor Python:
//
//     make bench-native
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "../../csrc/math/cross_entropy.h"
#include "../../csrc/math/gate.h"
#include "../../csrc/math/topk.h"

namespace {

using namespace adapruner;

constexpr int kValues = 4096;
constexpr int kRuns = 301;

// What a loop gives is kept, or the compiler would leave the loop out.
template <typename T>
void keep(const std::vector<T>& values) {
  __asm__ volatile("" : : "r"(values.data()) : "memory");
}

template <typename F>
void report(const char* name, const F& loop) {
  std::vector<double> nanoseconds;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    for (int repeat = 0; repeat < 16; ++repeat) loop();
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
    nanoseconds.push_back(time.count() / (16.0 * kValues));
  }
  std::sort(nanoseconds.begin(), nanoseconds.end());
  std::printf("%-20s %8.3f  [%.3f, %.3f]\n", name, nanoseconds[kRuns / 2], nanoseconds[kRuns / 4],
              nanoseconds[3 * kRuns / 4]);
}

// out[i] = f(in[i])
template <typename Out, typename In, typename F>
void each(const char* name, const std::vector<In>& in, const F& f) {
  std::vector<Out> out(in.size());
  report(name, [&] {
    for (int i = 0; i < kValues; ++i) out[i] = f(in[i]);
    keep(out);
  });
}

}  // namespace

int main() {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(kValues), negative(kValues), losses(kValues);
  std::vector<double> exponents(kValues);
  for (int i = 0; i < kValues; ++i) {
    x[i] = normal(random);
    negative[i] = -8.0f * std::fabs(normal(random));
    losses[i] = std::fabs(normal(random));
    exponents[i] = 8.0 * normal(random);
  }
  int64_t state[kStateSize] = {};
  write_double(state, kSlope, 1.3);
  write_double(state, kKeepRatio, 0.7);
  write_double(state, kEasyWeight, 1.0);
  write_double(state, kPressureCap, INFINITY);
  write_double(state, kStepSize, 0.05);
  write_double(state, kLossScale, 1.0);
  state[kAgeCap] = 16;
  const ValueBins bins = value_bins(-2.0f, 2.0f, 512);
  const RowTerms<float> terms = row_terms(1.0f, 10.0f, 0.1, 10);

  std::printf("%-20s %8s  %s\n", "", "ns", "[quartiles]");
  each<float>("exp_nonpositive", negative, [](float v) { return exp_nonpositive(v); });
  each<double>("exp_clamped", exponents, [](double v) { return exp_clamped(v); });
  each<double>("gate", x, [](float m) { return gate(1.3, m); });
  each<int64_t>("gate_fixed", x, [](float m) { return gate_fixed(1.3, m); });
  each<double>("pressure", losses, [&](float loss) { return pressure(state, 0.1, loss); });
  each<float>("stepped", x, [&](float m) { return stepped(state, m, 1, 0.5); });
  each<float>("row_loss", losses, [&](float loss) { return row_loss(terms, loss, 0.3f); });
  each<uint32_t>("order_key", x, [](float m) { return order_key(m); });
  each<int32_t>("value_bin", x, [&](float m) { return value_bin(bins, m); });
}
