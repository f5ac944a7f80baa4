// csrc/cuda/masked_loss.cuh in the emulator, compared with long double.
#define ADAPRUNER_EMULATE
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "../../csrc/cuda/masked_loss.cuh"
#include "check.h"

namespace {

using namespace adapruner;
using namespace adapruner::cuda;

constexpr int64_t kGates = 40;

template <typename T>
struct Call {
  using A = Accumulator<T>;

  explicit Call(int64_t samples) : given(samples), gradient(samples), pressure(samples, -5) {
    std::mt19937 random(11);
    std::normal_distribution<double> normal;
    std::uniform_int_distribution<int> ids(0, kGates - 1);
    for (int64_t i = 0; i < kGates; ++i) m.push_back(static_cast<float>(normal(random)));
    for (int64_t b = 0; b < samples; ++b) {
      given[b] = narrow<T>(static_cast<A>(std::exp(2 * normal(random))));
      id.push_back(static_cast<uint8_t>(ids(random)));
    }
    write_double(slots, kSlope, 0.7);
    write_double(slots, kEasyWeight, 0.5);
    write_double(slots, kPressureCap, 2.2);
    write_double(slots, kLossScale, 1.0);
  }

  void run() {
    const int64_t units = ceil_div<int64_t>(given.size(), kLossThreads);
    std::vector<double> partial(units, NAN);
    unsigned done = 77;
    LossBatch batch{};
    batch.samples = given.size();
    batch.ids = {id.data(), Integers::Type::kUint8};
    batch.gate_logits = m.data();
    batch.gates = kGates;
    batch.state = slots;
    batch.loss = &loss;
    batch.pressure = pressure.data();
    batch.units = units;
    batch.partial = partial.data();
    batch.done = units == 1 ? nullptr : &done;
    masked_loss<T>(batch, given.data(), gradient.data(), nullptr);
  }

  std::vector<T> given;
  std::vector<A> gradient;
  std::vector<float> m, pressure;
  std::vector<uint8_t> id;
  int64_t slots[kStateSize] = {};
  A loss = -5;
};

template <typename T>
void agrees(int64_t samples) {
  Call<T> call(samples);
  call.run();
  const double unit = std::is_same_v<T, double> ? 1e-14 : 1e-6;
  long double total = 0;
  for (int64_t b = 0; b < samples; ++b) {
    const long double s = 1 / (1 + std::exp(-0.7L * call.m[call.id[b]])), l = widen(call.given[b]);
    total += s * l;
    const long double p = std::min(l - 0.5L * std::log(l + 1e-5L), 2.2L);
    CHECK(std::fabs(call.pressure[b] - p) <= 1e-6L * (1 + std::fabs(p)));
    CHECK(std::fabs(widen(call.gradient[b]) - s / samples) <= unit * s / samples);
  }
  CHECK(std::fabs(call.loss - total / samples) <= unit * total / samples);
}

void bad_samples_take_no_part() {
  Call<float> call(300);
  call.given[3] = -1;
  call.given[280] = -2;
  call.given[5] = NAN;
  call.given[6] = INFINITY;
  call.run();
  CHECK_EQUAL(call.slots[kErrorKind], int64_t{kNegativeLoss});
  CHECK_EQUAL(call.slots[kErrorPlace], 3);
  CHECK_EQUAL(read_double(call.slots, kErrorValue), -1.0);
  CHECK(call.pressure[3] == INFINITY && call.gradient[3] == 0);
  CHECK(std::isnan(call.pressure[5]) && std::isnan(call.pressure[6]));
  CHECK(std::isnan(call.loss));
  call.id[290] = kGates;
  call.run();
  CHECK_EQUAL(call.slots[kErrorKind], int64_t{kBadId});
  CHECK_EQUAL(call.slots[kErrorPlace], 290);
  CHECK(call.pressure[290] == INFINITY && call.gradient[290] == 0);
}

}  // namespace

int main() {
  emulation::each_order([] {
    for (const int64_t samples : {1, 31, 256, 257, 2000}) {
      agrees<float>(samples);
      agrees<double>(samples);
      agrees<__nv_bfloat16>(samples);
      agrees<__half>(samples);
    }
    bad_samples_take_no_part();
  });
  return check::failures() != 0;
}
