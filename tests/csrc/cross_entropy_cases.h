// A batch for the cross entropy kernels, and its results in long double.
#pragma once

#define ADAPRUNER_EMULATE
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cuda/masked_cross_entropy.cuh"
#include "check.h"

namespace cases {

using namespace adapruner;
using namespace adapruner::cuda;

constexpr int64_t kGates = 40, kIgnored = -7;

struct Case {
  int64_t samples, rows, classes;
  bool strided = false;
  double smoothing = 0;
  bool weights = false;
  double ignored = 0;  // share of ignored rows
  bool in_place = true;
  int64_t pad = 0;               // values between rows (strided: between classes)
  int64_t offset = 0;            // values before the first
  double scale = 3;              // standard deviation of the logits
  double masked = 0;             // share of logits that are −inf, except targets
  int64_t units_per_launch = 0;  // 0: all units in one launch
  DeviceSize device{3, 64 * 1024};
};

struct State {
  int64_t slots[kStateSize] = {};
  State() {
    write_double(slots, kSlope, 1.3);
    write_double(slots, kKeepRatio, 0.7);
    write_double(slots, kBalance, 1.0);
    write_double(slots, kBalanceGain, 50.0);
    write_double(slots, kEasyWeight, 1.0);
    write_double(slots, kPressureCap, INFINITY);
    write_double(slots, kLossScale, 2.0);
    slots[kGateSum] = int64_t{20} << 30;
    slots[kOpenCount] = 17;
    slots[kPopulation] = kGates;
  }
  // 2λ·(s̄ − r)
  static long double balance() {
    return 2.0L * (1.0L + 50.0L * std::fabs(17.0L / 40 - 0.7L)) * (0.5L - 0.7L);
  }
};

template <typename T>
double precision() {  // relative precision of a stored value
  return std::is_same_v<T, double>          ? 1e-13
         : std::is_same_v<T, float>         ? 1e-6
         : std::is_same_v<T, __nv_bfloat16> ? 4e-3
                                            : 5e-4;
}

template <typename T>
class Batch {
 public:
  using A = Accumulator<T>;

  Batch(const Case& with, unsigned seed) : with_(with), random_(seed) {
    const int64_t all = with.samples * with.rows;
    std::uniform_int_distribution<int64_t> classes(0, with.classes - 1), ids(0, kGates - 1);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    for (int64_t i = 0; i < all; ++i) {
      target.push_back(uniform(random_) < with.ignored ? kIgnored : classes(random_));
    }
    for (int64_t b = 0; b < with.samples; ++b) id.push_back(static_cast<int32_t>(ids(random_)));
    for (int64_t i = 0; i < kGates; ++i) m.push_back(static_cast<float>(normal(random_) * 2));
    for (int64_t c = 0; with.weights && c < with.classes; ++c) {
      weight.push_back(static_cast<A>(uniform(random_) + 0.1));
      total_weight += weight.back();
    }
    // Rows (or classes) follow one another. Nothing follows the last value, so that a read beyond
    // it is found.
    const int64_t inner = (with.strided ? with.rows : with.classes) + with.pad;
    const int64_t outer = with.strided ? with.classes : with.rows;
    strides = with.strided ? Strides{outer * inner, 1, inner} : Strides{outer * inner, inner, 1};
    logits.resize(with.offset + with.samples * outer * inner - with.pad, narrow<T>(A(7)));
    for (int64_t b = 0; b < with.samples; ++b) {
      for (int64_t r = 0; r < with.rows; ++r) {
        for (int64_t c = 0; c < with.classes; ++c) {
          A x = static_cast<A>(normal(random_) * with.scale);
          if (uniform(random_) < with.masked && target[b * with.rows + r] != c) x = -INFINITY;
          logits[place(b, r, c)] = narrow<T>(x);
        }
      }
    }
    before = logits;
  }

  int64_t place(int64_t b, int64_t r, int64_t c) const {
    return with_.offset + b * strides.sample + r * strides.row + c * strides.one;
  }

  void run() {
    const Case& c = with_;
    const CrossEntropyPlan plan = plan_cross_entropy(c.samples, c.rows, c.classes, sizeof(T),
                                                     c.strided, c.smoothing > 0, c.device);
    sample_loss.assign(c.samples, A(-5));
    pressure.assign(c.samples, -5);
    partial.assign(plan.units, NAN);
    sample_rows.assign(c.samples, {NAN, NAN, -7, 9});
    gradient.clear();
    if (!c.in_place) gradient.assign(logits.size(), narrow<T>(A(-3)));
    CrossEntropyBatch batch{};
    batch.samples = c.samples;
    batch.ids = {id.data(), Integers::Type::kInt32};
    batch.gate_logits = m.data();
    batch.gates = kGates;
    batch.state = state.slots;
    batch.loss = &loss;
    batch.sample_loss = sample_loss.data();
    batch.pressure = pressure.data();
    batch.units = plan.units;
    batch.partial = partial.data();
    batch.done = plan.units == 1 ? nullptr : &done;
    batch.rows = c.rows;
    batch.classes = c.classes;
    batch.target = {target.data(), Integers::Type::kInt64};
    batch.ignore_index = kIgnored;
    batch.class_weight = c.weights ? weight.data() : nullptr;
    batch.total_weight = &total_weight;
    batch.unit_terms = row_terms(1.0, 0.0, c.smoothing, c.classes);
    batch.unit_scale = stored() / c.samples;
    batch.sample_rows = sample_rows.data();
    T* out = c.in_place ? logits.data() : gradient.data();
    prepare_cross_entropy(batch, plan, nullptr);
    const int64_t step = c.units_per_launch == 0 ? plan.units : c.units_per_launch;
    for (int64_t begin = 0; begin < plan.units; begin += step) {
      const int64_t end = std::min(begin + step, plan.units);
      // The linear operator passes only the rows of these units.
      const UnitRows first = rows_of(plan, c.samples, c.rows, begin);
      const int64_t origin =
          c.strided || c.units_per_launch == 0 ? 0 : first.sample * c.rows + first.first;
      const int64_t skip = c.offset + origin * strides.row;
      cross_entropy_rows<T>(batch, plan,
                            {logits.data() + skip, out + skip, strides, strides, origin}, begin,
                            end, nullptr);
    }
  }

  void check() {
    const Case& c = with_;
    long double total = 0;
    const double tolerance = std::is_same_v<T, double> ? 1e-12 : 2e-6;
    for (int64_t b = 0; b < c.samples; ++b) {
      int64_t count = 0;
      for (int64_t r = 0; r < c.rows; ++r) count += counts(b, r);
      const bool there = id[b] >= 0 && id[b] < kGates;
      const long double s = there ? 1 / (1 + std::exp(-1.3L * m[id[b]])) : 0;
      long double sum = 0;
      for (int64_t r = 0; r < c.rows; ++r) {
        const long double scale = stored() * s / (c.samples * std::max<int64_t>(count, 1));
        sum += check_row(b, r, counts(b, r) && there, scale);
      }
      const bool any = count > 0 && there;
      const long double expected = any ? sum / count : 0;
      total += s * expected;
      near(sample_loss[b], expected, tolerance * std::max(1.0L, std::fabs(expected)), "loss");
      if (!any) {
        CHECK(std::isinf(pressure[b]) && pressure[b] > 0);
      } else if (!std::isfinite(expected)) {
        CHECK(std::isnan(pressure[b]));
      } else {
        const long double scaled = expected / 2;
        const long double p = scaled - std::log(scaled + 1e-5L) + State::balance();
        near(pressure[b], p, 1e-6 * (1 + std::fabs(p)) + 4e-7L / (scaled + 1e-5L), "pressure");
      }
    }
    near(loss, total / c.samples, tolerance * std::max(1.0L, std::fabs(total)), "total");
    check_between();
  }

  State state;
  std::vector<int64_t> target;
  std::vector<int32_t> id;
  std::vector<float> m, pressure;
  std::vector<A> weight, sample_loss;
  std::vector<T> logits, before, gradient;
  A loss = -5;

 private:
  static double stored() { return std::is_same_v<T, __half> ? kHalfGradientScale : 1.0; }

  bool counts(int64_t b, int64_t r) const {
    const int64_t y = target[b * with_.rows + r];
    return y >= 0 && y < with_.classes;
  }

  static void near(long double found, long double expected, long double tolerance,
                   const char* what) {
    const bool same = std::isfinite(expected) ? std::fabs(found - expected) <= tolerance
                      : std::isnan(expected)  ? std::isnan(found)
                                              : found == expected;
    if (same) return;
    ++::check::failures();
    std::cerr << what << ": " << double(found) << " is not " << double(expected) << "\n";
  }

  // Checks the gradient of a row and returns its loss.
  long double check_row(int64_t b, int64_t r, bool takes_part, long double scale) {
    const Case& c = with_;
    const int64_t y = target[b * c.rows + r];
    const std::vector<T>& out = c.in_place ? logits : gradient;
    if (!takes_part) {
      for (int64_t j = 0; j < c.classes; ++j) {
        if (widen(out[place(b, r, j)]) != 0) near(widen(out[place(b, r, j)]), 0, 0, "ignored");
      }
      return 0;
    }
    const auto x = [&](int64_t j) {
      return static_cast<long double>(widen(before[place(b, r, j)]));
    };
    const auto w = [&](int64_t j) {
      return c.weights ? static_cast<long double>(weight[j]) : 1.0L;
    };
    long double most = -INFINITY, sum = 0, all_weight = 0;
    for (int64_t j = 0; j < c.classes; ++j) most = std::max(most, x(j));
    for (int64_t j = 0; j < c.classes; ++j) sum += std::exp(x(j) - most), all_weight += w(j);
    const long double lse = most + std::log(sum), alpha = c.smoothing;
    long double loss = (1 - alpha) * w(y) * (lse - x(y));
    for (int64_t j = 0; alpha > 0 && j < c.classes; ++j) {
      loss += alpha / c.classes * w(j) * (lse - x(j));
    }
    const long double factor = (1 - alpha) * w(y) + alpha * all_weight / c.classes;
    const long double tolerance =
        precision<T>() * scale * std::max(1.0L, factor) + (std::is_same_v<T, __half> ? 6e-8 : 0);
    for (int64_t j = 0; j < c.classes; ++j) {
      long double g = factor * std::exp(x(j) - lse) - alpha / c.classes * w(j);
      if (j == y) g -= (1 - alpha) * w(y);
      near(widen(out[place(b, r, j)]), scale * g, tolerance, "gradient");
    }
    return loss;
  }

  // Values that are not logits must be unchanged.
  void check_between() {
    std::vector<bool> of_a_row(logits.size());
    for (int64_t b = 0; b < with_.samples; ++b) {
      for (int64_t r = 0; r < with_.rows; ++r) {
        for (int64_t c = 0; c < with_.classes; ++c) of_a_row[place(b, r, c)] = true;
      }
    }
    for (size_t i = 0; i < logits.size(); ++i) {
      if (!of_a_row[i]) CHECK_EQUAL(widen(logits[i]), widen(before[i]));
      if (!of_a_row[i] && !with_.in_place) CHECK_EQUAL(widen(gradient[i]), -3);
    }
  }

  Case with_;
  std::mt19937_64 random_;
  Strides strides{};
  A total_weight = 0;
  std::vector<double> partial;
  std::vector<SampleRows> sample_rows;
  unsigned done = 99;
};

template <typename T>
void run(const Case& with, unsigned seed = 1) {
  Batch<T> batch(with, seed);
  batch.run();
  const int before = check::failures();
  batch.check();
  if (check::failures() != before) {
    std::cerr << "  [" << with.samples << ", " << with.rows << ", " << with.classes << "] of "
              << sizeof(T) << " bytes" << (with.strided ? ", strided" : "") << ", smoothing "
              << with.smoothing << (with.weights ? ", weights" : "") << ", pad " << with.pad
              << ", offset " << with.offset << (with.in_place ? ", in place" : "") << "\n";
  }
}

inline void each_type(const Case& with) {
  run<float>(with);
  run<double>(with);
  run<__nv_bfloat16>(with);
  run<__half>(with);
}

}  // namespace cases
