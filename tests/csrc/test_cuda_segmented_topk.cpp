// csrc/cuda/segmented_topk.cuh in the emulator, compared with a stable sort in every segment.
#define ADAPRUNER_EMULATE
#include "../../csrc/cuda/segmented_topk.cuh"
#include "check.h"
#include "topk_cases.h"

namespace {

using namespace adapruner;
using namespace adapruner::cuda;

template <typename T>
constexpr Integers::Type kType = std::is_same_v<T, uint8_t>   ? Integers::Type::kUint8
                                 : std::is_same_v<T, int8_t>  ? Integers::Type::kInt8
                                 : std::is_same_v<T, int16_t> ? Integers::Type::kInt16
                                 : std::is_same_v<T, int32_t> ? Integers::Type::kInt32
                                                              : Integers::Type::kInt64;

template <typename T>
struct Case {
  std::vector<float> x;
  std::vector<T> segments;
  std::vector<int64_t> quotas;

  // Segments in random order or one after another. The quota is a share of the segment.
  Case(const std::string& kind, int64_t n, int64_t count, bool sorted, uint32_t seed = 3)
      : x(cases::values_of(kind, n)), segments(n), quotas(count, 0) {
    std::mt19937 random(seed);
    const bool none = std::is_signed_v<T>;
    for (int64_t i = 0; i < n; ++i) {
      segments[i] = static_cast<T>(sorted ? i * count / n
                                          : static_cast<int64_t>(random() % (count + none)) - none);
      if (segments[i] != static_cast<T>(-1) || !none) ++quotas[segments[i]];
    }
    for (int64_t& quota : quotas) {
      const uint32_t share = random() % 6;
      quota = share == 0 ? 0 : share == 1 ? quota : quota * share / 6;
    }
  }

  std::vector<uint32_t> expected() const {
    std::vector<int64_t> left = quotas;
    std::vector<uint32_t> mask = cases::empty_mask(x.size());
    for (const int64_t i : cases::stable_order(x)) {
      if (std::is_signed_v<T> && segments[i] == static_cast<T>(-1)) continue;
      if (left[segments[i]]-- > 0) cases::set(mask, i);
    }
    return mask;
  }

  SegmentedErrors run(std::vector<uint32_t>& mask, int64_t* sums, int multiprocessors) const {
    cases::Arena arena;
    const Scratch scratch = std::ref(arena);
    return select_segmented(x.data(), x.size(), {segments.data(), kType<T>}, quotas.size(),
                            quotas.data(), -0.6, mask.data(), sums, multiprocessors, scratch,
                            nullptr);
  }
};

template <typename T>
void check_case(const std::string& kind, int64_t n, int64_t count, bool sorted,
                int multiprocessors) {
  const Case<T> one(kind, n, count, sorted);
  std::vector<uint32_t> mask = cases::empty_mask(n);
  int64_t sums[2] = {-1, -1}, expected[2] = {0, 0};
  for (const float v : one.x) {
    expected[0] += gate_fixed(-0.6, v);
    expected[1] += v > 0;
  }
  const SegmentedErrors errors = one.run(mask, sums, multiprocessors);
  CHECK(errors.nan == -1 && errors.outside == -1 && errors.quota == -1);
  CHECK(mask == one.expected());
  CHECK(sums[0] == expected[0] && sums[1] == expected[1]);
}

void selections_in_any_order_of_blocks() {
  for (const char* kind : {"normal", "few values"}) {
    check_case<int16_t>(kind, 5001, 40, false, 1);
    check_case<int32_t>(kind, 5001, 3, true, 1);
  }
}

void selections_are_stable_sorts_within_segments() {
  for (const std::string& kind : cases::kinds()) {
    check_case<int16_t>(kind, 3001, 40, false, 1);
    check_case<int32_t>(kind, 5001, 3, true, 1);
  }
}

void every_type_and_size() {
  check_case<uint8_t>("normal", 5000, 200, false, 1);
  check_case<int8_t>("normal", 5001, 100, false, 1);
  check_case<int64_t>("few values", 5002, 3000, false, 1);
  check_case<int64_t>("normal", 5003, 1, false, 13);
  for (const int64_t n : {1, 2, 3, 5, 127, 1025}) check_case<int16_t>("few values", n, 2, false, 1);
}

// The bins of the thresholds contain more values than are stored at once. So all values are counted
// again.
void data_in_few_bins() {
  check_case<int16_t>("equal", 70001, 5, false, 1);
  check_case<int16_t>("two values", 70001, 300, false, 2);
}

// The counters take 96 KB of shared memory.
void many_values_for_each_counter() { check_case<uint8_t>("normal", 197003, 60, false, 1); }

void entries_of_many_values_give_the_same() {
  const Case<int16_t> one("few values", 9001, 7, false);
  cases::Arena arena;
  const Scratch scratch = std::ref(arena);
  std::vector<uint32_t> mask = cases::empty_mask(9001);
  const Segments of{{one.segments.data(), Integers::Type::kInt16}, 7};
  SegmentedTopk<uint128_t>(one.x.data(), 9001, of, one.quotas.data(), mask.data(), 2, scratch,
                           nullptr)
      .run(0, nullptr);
  CHECK(mask == one.expected());
}

void what_is_wrong_is_named() {
  Case<int32_t> one("normal", 1000, 5, false);
  std::vector<uint32_t> mask = cases::empty_mask(1000);
  one.quotas[3] = -1;
  CHECK_EQUAL(one.run(mask, nullptr, 2).quota, 3);
  one.quotas[2] = 1000;
  CHECK_EQUAL(one.run(mask, nullptr, 2).quota, 2);
  for (const int32_t bad : {-2, 5, 1 << 30, -(1 << 30)}) {
    one.segments[999] = one.segments[702] = bad;
    CHECK_EQUAL(one.run(mask, nullptr, 1).outside, 702);
  }
  one.x[801] = one.x[805] = std::nanf("");
  CHECK_EQUAL(one.run(mask, nullptr, 3).nan, 801);
  Case<int32_t> nothing("normal", 0, 2, true);
  CHECK_EQUAL(nothing.run(mask, nullptr, 2).quota, -1);
  nothing.quotas[1] = 1;
  CHECK_EQUAL(nothing.run(mask, nullptr, 2).quota, 1);
}

void histograms_fit_their_memory() {
  for (const int64_t rows :
       {int64_t{2}, int64_t{17}, int64_t{33}, int64_t{1001}, int64_t{1} << 20, int64_t{1} << 30}) {
    for (const int64_t n : {int64_t{10}, int64_t{1000000}, int64_t{1} << 33}) {
      const SegmentedPlan plan = plan_segmented(n, rows, 132, 227 << 10);
      CHECK(plan.bits >= 1 && plan.bits <= 9);
      CHECK(rows << plan.bits <= int64_t{1} << 24 || plan.bits == 1);
      const bool large = n > int64_t{132} * 2 * 4 * 24576;  // enough values for each counter
      CHECK_EQUAL(plan.shared, rows << plan.bits <= (large ? 24576 : 8192));
      CHECK(1 + digit_rounds(32 + 40, plan.bits) <= kMostRounds);
    }
  }
  CHECK_EQUAL(plan_segmented(100000000, 1001, 132, 227 << 10).bits, 9);
  CHECK(plan_segmented(100000000, 95, 132, 227 << 10).shared);
  CHECK(!plan_segmented(100000000, 95, 132, 64 << 10).shared);
  CHECK(!plan_segmented(10000000, 95, 132, 227 << 10).shared);
}

}  // namespace

int main() {
  emulation::each_order(selections_in_any_order_of_blocks);
  selections_are_stable_sorts_within_segments();
  what_is_wrong_is_named();
  every_type_and_size();
  data_in_few_bins();
  many_values_for_each_counter();
  entries_of_many_values_give_the_same();
  histograms_fit_their_memory();
  return check::failures() != 0;
}
