// csrc/cuda/gate_update.cuh in the emulator, compared bit by bit with a sequential update of the
// same batch, which is written with a map and visits one sample at a time.
#define ADAPRUNER_EMULATE
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "../../csrc/cuda/gate_update.cuh"
#include "check.h"

namespace {

using namespace adapruner;
using namespace adapruner::cuda;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Gates {
  std::vector<float> m, last_loss;
  std::vector<uint8_t> age;
  std::vector<int64_t> state = std::vector<int64_t>(kStateSize);
  bool track = true;

  explicit Gates(int64_t n, unsigned seed = 3, double slope = 1.3)
      : m(n), last_loss(n, -7.0f), age(n) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, 2);
    std::uniform_int_distribution<int> ages(0, 21);
    for (float& x : m) x = normal(random);
    for (uint8_t& x : age)
      x = static_cast<uint8_t>(ages(random) == 21 ? kNeverVisited : ages(random));
    real(kSlope, slope);
    real(kKeepRatio, 0.7);
    real(kBalance, 1);
    real(kBalanceGain, 50);
    real(kEasyWeight, 1);
    real(kPressureCap, 2.2);
    real(kStepSize, 0.05);
    real(kLossScale, 1);
    real(kLossSum, 0.1);
    state[kLossCount] = 1;
    state[kAgeCap] = 16;
    state[kPopulation] = n;
    count(state[kGateSum], state[kOpenCount]);
  }

  void real(Slot slot, double value) { write_double(state.data(), slot, value); }

  void count(int64_t& fixed, int64_t& open) const {
    fixed = open = 0;
    for (float x : m) {
      fixed += gate_fixed(read_double(state.data(), kSlope), x);
      open += x > 0;
    }
  }

  GateArrays arrays() {
    return {m.data(), age.data(), state.data(), track ? last_loss.data() : nullptr,
            static_cast<int64_t>(m.size())};
  }
};

template <typename Real>
struct Batch {
  std::vector<int64_t> ids;
  std::vector<Real> pressure, loss;

  // Draws ids from the first `distinct` ids.
  Batch(int64_t size, int64_t distinct, unsigned seed = 5) : ids(size), pressure(size), loss(size) {
    std::mt19937_64 random(seed);
    std::uniform_int_distribution<int64_t> id(0, std::max<int64_t>(distinct - 1, 0));
    std::normal_distribution<double> normal(1, 3);
    for (int64_t b = 0; b < size; ++b) {
      ids[b] = id(random);
      pressure[b] = static_cast<Real>(normal(random));
      loss[b] = static_cast<Real>(std::exp(normal(random)));
    }
  }
};

template <typename Real>
void expected(Gates& gates, const Batch<Real>& batch) {
  int64_t* state = gates.state.data();
  const auto n = static_cast<int64_t>(gates.m.size());
  std::map<int64_t, double> sums;
  std::vector<double> lanes(kLossLanes, 0.0);
  std::vector<int64_t> other;
  for (size_t b = 0; b < batch.ids.size(); ++b) {
    const int64_t id = batch.ids[b];
    const auto place = static_cast<int64_t>(b);
    if (id < 0 || id >= n) {
      if (state[kErrorLatch] == kErrorsSealed) continue;
      if (state[kErrorKind] == kNoError || place < state[kErrorPlace]) {
        state[kErrorKind] = kBadId;
        state[kErrorPlace] = place;
        state[kErrorValue] = id;
      }
      continue;
    }
    const double pressure = batch.pressure[b], loss = batch.loss[b];
    if (!std::isinf(pressure)) {
      if (gates.track) gates.last_loss[id] = static_cast<float>(loss);
      if (std::isfinite(loss)) {
        lanes[b % kLossLanes] += loss;
        ++state[kLossCount];
      }
    }
    if (std::isnan(pressure)) {
      if (state[kNotFiniteCount] < kNotFiniteCapacity) {
        state[kNotFiniteIds + state[kNotFiniteCount]] = id;
      }
      ++state[kNotFiniteCount];
    }
    if (!std::isfinite(pressure)) {
      other.push_back(id);
    } else if (sums.count(id)) {
      sums[id] += pressure;
    } else {
      sums[id] = pressure;
    }
  }
  for (int half = kLossLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  if (state[kErrorKind] != kNoError) state[kErrorLatch] = kErrorsSealed;
  gates.real(kLossSum, read_double(state, kLossSum) + lanes[0]);
  if (state[kScaleRunning] && read_double(state, kLossSum) > 0) {
    gates.real(kLossScale, read_double(state, kLossSum) / static_cast<double>(state[kLossCount]));
  }
  if (state[kResting]) return;
  for (int64_t id : other) {
    if (gates.age[id] == kNeverVisited) gates.age[id] = 1;
  }
  for (const auto& [id, pressure] : sums) {
    gates.m[id] = stepped(state, gates.m[id], gates.age[id], pressure);
    gates.age[id] = 0;
  }
  gates.count(state[kGateSum], state[kOpenCount]);
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <int kThreads = 64, typename Real>
Gates compare(const Gates& before, const Batch<Real>& batch) {
  Gates found = before, wanted = before;
  expected(wanted, batch);
  gate_update<kThreads>(GateBatch<Real>{batch.ids.data(), batch.pressure.data(), batch.loss.data(),
                                        static_cast<int64_t>(batch.ids.size())},
                        found.arrays(), nullptr);
  CHECK(same_bits(found.m, wanted.m));
  CHECK(same_bits(found.age, wanted.age));
  CHECK(same_bits(found.last_loss, wanted.last_loss));
  CHECK(same_bits(found.state, wanted.state));
  return found;
}

void sizes_and_repeats() {
  for (const int64_t size : {0, 1, 31, 33, 63, 64, 65, 700}) {
    compare(Gates(3000), Batch<float>(size, 3000));
    compare(Gates(3000), Batch<double>(size, size / 2 + 1));
  }
  compare(Gates(1), Batch<float>(40, 1));
  compare(Gates(5000, 4, 0.1), Batch<float>(300, 7));
  compare(Gates(9, 4, 5.0), Batch<double>(200, 1));  // one id
  compare<kUpdateThreads>(Gates(3000), Batch<float>(1100, 2500));
  compare<32>(Gates(300), Batch<float>(100, 40));
}

void settings() {
  Gates gates(400);
  gates.track = false;
  compare(gates, Batch<float>(300, 400));
  gates.track = true;
  gates.state[kScaleRunning] = 1;
  compare(gates, Batch<float>(300, 400));
  gates.state[kResting] = 1;
  compare(gates, Batch<float>(300, 400));
}

void visits_that_are_not_finite() {
  for (const bool resting : {false, true}) {
    Gates gates(100);
    gates.state[kResting] = resting;
    for (int i = 0; i < 100; i += 3) gates.age[i] = kNeverVisited;
    Batch<float> batch(500, 100);
    std::mt19937 random(8);
    for (size_t b = 0; b < batch.ids.size(); ++b) {
      const unsigned kind = random() % 16;
      if (kind < 2) batch.pressure[b] = kNaN;
      if (kind < 1) batch.loss[b] = random() % 2 ? kNaN : kInfinity;
      if (kind == 3) batch.pressure[b] = random() % 2 ? kInfinity : -kInfinity;
      if (kind == 4) batch.loss[b] = kInfinity;
    }
    const Gates once = compare(gates, batch);
    compare(once, batch);  // the table has no room for more ids
    Batch<float> none(40, 100);
    none.pressure.assign(40, kNaN);
    compare(gates, none);
  }
}

void extreme_pressures() {
  const double huge = std::numeric_limits<double>::max();
  Batch<double> batch(64, 8);
  for (size_t b = 0; b < batch.ids.size(); ++b) batch.pressure[b] = b % 3 ? huge : -huge;
  for (size_t b = 0; b < batch.ids.size(); b += 5) batch.pressure[b] = -0.0;
  Gates gates(8);
  gates.m = {-kInfinity, 300, -300, 0, -0.0f, 1e30f, 1e-40f, 1};
  gates.count(gates.state[kGateSum], gates.state[kOpenCount]);
  compare(gates, batch);
}

void bad_ids_are_noted_and_take_no_part() {
  Gates gates(50);
  Batch<float> batch(300, 50);
  batch.ids[290] = -1;
  batch.ids[100] = 50;
  batch.ids[40] = std::numeric_limits<int64_t>::max();
  batch.ids[41] = std::numeric_limits<int64_t>::min();
  const Gates once = compare(gates, batch);
  CHECK_EQUAL(once.state[kErrorPlace], 40);
  CHECK_EQUAL(once.state[kErrorLatch], int64_t{kErrorsSealed});
  batch.ids[3] = -5;
  const Gates twice = compare(once, batch);
  CHECK_EQUAL(twice.state[kErrorPlace], 40);
}

// Ids that all belong to one block, many more than its table holds.
void a_share_beyond_its_table_is_cut() {
  const int64_t size = 4096;
  std::vector<int64_t> ids;
  for (int64_t id = 0; static_cast<int64_t>(ids.size()) < size; ++id) {
    if (mixed(static_cast<uint64_t>(id)) >> (64 - share_bits(size)) == 5) ids.push_back(id);
  }
  Batch<float> batch(size, 1);
  batch.ids = ids;
  for (int64_t b = 0; b < 64; ++b) batch.ids[size - 1 - b] = ids[b];
  compare<256>(Gates(ids.back() + 1), batch);
}

// More ids with the same first slot than there are probes.
void ids_that_begin_their_probes_together() {
  std::vector<int64_t> ids;
  for (int64_t id = 0; ids.size() < 300; ++id) {
    const uint64_t hash = mixed(static_cast<uint64_t>(id));
    if (hash % kTableSlots < 2 && hash >> 63 == 1) ids.push_back(id);
  }
  Batch<float> batch(300, 1);
  batch.ids = ids;
  compare(Gates(ids.back() + 1), batch);
}

void shares_follow_the_batch() {
  CHECK_EQUAL(share_bits(1), 1);
  CHECK_EQUAL(share_bits(512), 1);
  CHECK_EQUAL(share_bits(513), 2);
  CHECK_EQUAL(share_bits(4096), 4);
  CHECK_EQUAL(share_bits(1'000'000), 12);
}

void drift() {
  for (const int multiprocessors : {1, 132}) {
    for (const int64_t n : {0, 1, 255, 256, 257, 5000}) {
      for (const bool resting : {false, true}) {
        Gates gates(n);
        gates.state[kResting] = resting;
        std::mt19937 random(2);
        std::exponential_distribution<float> losses(0.5f);
        for (float& x : gates.last_loss) x = random() % 9 ? losses(random) : kNaN;
        for (size_t i = 0; i < gates.age.size(); i += 3) gates.age[i] = 0;
        if (n > 5) gates.last_loss[5] = kInfinity;
        Gates wanted = gates;
        const int64_t* state = wanted.state.data();
        for (int64_t i = 0; i < n && !resting; ++i) {
          if (wanted.age[i] == 0 || wanted.age[i] == kNeverVisited) continue;
          if (!std::isfinite(wanted.last_loss[i])) continue;
          const double by = pressure(state, balance_pressure(state), wanted.last_loss[i]);
          wanted.m[i] = stepped(state, wanted.m[i], 0, by);
        }
        gate_drift(gates.arrays(), multiprocessors, nullptr);
        CHECK(same_bits(gates.m, wanted.m));
        CHECK(same_bits(gates.age, wanted.age));
        CHECK(same_bits(gates.state, wanted.state));
      }
    }
  }
}

// The scale is the mean in the lane order of the CPU, which is written out here.
template <int kThreads, typename Real>
void first_batch_of_size(int64_t size, bool running, bool first) {
  Gates gates(10);
  gates.real(kLossScale, 5);
  gates.state[kScaleRunning] = running;
  gates.state[kLossCount] = !first;
  Batch<Real> batch(size, 10);
  for (int64_t b = 0; b < size; b += 7) batch.loss[b] = b % 2 ? Real(INFINITY) : Real(NAN);
  std::vector<float> found(size);
  for (int64_t b = 0; b < size; ++b) found[b] = b % 5 ? 1.0f : kInfinity;
  std::vector<float> wanted = found;
  std::vector<int64_t> state = gates.state;
  std::vector<double> lanes(kLossLanes, 0.0);
  int64_t count = 0;
  for (int64_t b = 0; b < size; ++b) {
    if (std::isinf(found[b]) || !std::isfinite(batch.loss[b])) continue;
    lanes[b % kLossLanes] += batch.loss[b];
    ++count;
  }
  for (int half = kLossLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  if (running && first && count > 0) {
    write_double(state.data(), kLossScale, lanes[0] / static_cast<double>(count));
    for (int64_t b = 0; b < size; ++b) {
      if (std::isinf(wanted[b])) continue;
      const double balance = balance_pressure(state.data());
      wanted[b] = sample_pressure(state.data(), balance, batch.loss[b], true);
    }
  }
  first_loss_scale<kThreads>(found.data(), batch.loss.data(), size, gates.state.data(), nullptr);
  CHECK(same_bits(found, wanted));
  CHECK(same_bits(gates.state, state));
}

void first_batches() {
  for (const int64_t size : {0, 1, 5, 31, 33, 64, 65, 1024, 1500}) {
    first_batch_of_size<64, float>(size, true, true);
    first_batch_of_size<1024, double>(size, true, true);
  }
  first_batch_of_size<64, float>(50, false, true);
  first_batch_of_size<64, float>(50, true, false);
}

}  // namespace

int main() {
  emulation::each_order([] {
    sizes_and_repeats();
    settings();
    visits_that_are_not_finite();
    extreme_pressures();
    bad_ids_are_noted_and_take_no_part();
    a_share_beyond_its_table_is_cut();
    ids_that_begin_their_probes_together();
    shares_follow_the_batch();
    drift();
    first_batches();
  });
  return check::failures() != 0;
}
