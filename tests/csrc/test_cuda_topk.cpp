// csrc/cuda/topk.cuh in the emulator, compared with a stable sort.
#define ADAPRUNER_EMULATE
#include <optional>

#include "../../csrc/cuda/topk.cuh"
#include "check.h"
#include "topk_cases.h"

namespace {

using namespace adapruner;
using namespace adapruner::cuda;
using cases::Arena;

// Runs topk_mask, or Topk with other limits for one block. With `wide`, entries are as for more
// than 2³² values. The memory of a vector is aligned to 16 bytes.
void check_selection(const std::vector<float>& x, int64_t k, const std::vector<int64_t>& order,
                     int multiprocessors, std::optional<OneBlock> one_block = {},
                     bool wide = false) {
  const int64_t n = static_cast<int64_t>(x.size());
  Arena arena;
  const Scratch scratch = std::ref(arena);
  std::vector<uint32_t> expected = cases::empty_mask(n), mask(expected.size(), 0xa5a5a5a5u);
  for (int64_t r = 0; r < k; ++r) cases::set(expected, order[r]);
  int64_t sums[2] = {-1, -1}, expected_sums[2] = {0, 0};
  for (const float v : x) {
    expected_sums[0] += gate_fixed(1.7, v);
    expected_sums[1] += v > 0;
  }
  const bool with_sums = k % 2 == 0;
  const auto select = [&](auto entry) {
    return Topk<decltype(entry)>(x.data(), n, k, mask.data(), multiprocessors, scratch, nullptr,
                                 *one_block)
        .run(1.7, with_sums ? sums : nullptr);
  };
  const int64_t nan = !one_block
                          ? topk_mask(x.data(), n, k, 1.7, mask.data(), with_sums ? sums : nullptr,
                                      multiprocessors, scratch, nullptr)
                      : wide ? select(uint128_t{})
                             : select(uint64_t{});
  CHECK_EQUAL(nan, -1);
  CHECK(mask == expected);
  if (with_sums) CHECK(sums[0] == expected_sums[0] && sums[1] == expected_sums[1]);
}

void selections_of(const std::string& kind, int64_t n, std::vector<int64_t> ks) {
  const std::vector<float> x = cases::values_of(kind, n);
  const std::vector<int64_t> order = cases::stable_order(x);
  for (const int64_t k : ks) check_selection(x, k, order, 1);
}

void selections_in_any_order_of_blocks() {
  for (const char* kind : {"normal", "few values", "misleading above"}) {
    selections_of(kind, 33, {20});
    selections_of(kind, 26003, {18202});
  }
}

void selections_are_the_stable_sort() {
  for (const std::string& kind : cases::kinds()) {
    selections_of(kind, 40, {27});
    selections_of(kind, 17003, {1701, 11902});
  }
  for (const char* kind : {"normal", "two values"}) {
    for (const int64_t n : {1, 31, 8191, 8193, 16384, 16385}) {
      selections_of(kind, n, {0, 1, n - 1, n});
    }
  }
}

void entries_of_many_values_give_the_same() {
  for (const char* kind : {"normal", "few values", "misleading inside"}) {
    const std::vector<float> x = cases::values_of(kind, 17003);
    check_selection(x, 6002, cases::stable_order(x), 2, OneBlock{}, true);
  }
}

// Samples and bands that are too large for one block.
void more_than_one_block_searches() {
  for (const std::string& kind : cases::kinds()) {
    const std::vector<float> x = cases::values_of(kind, 17003);
    const std::vector<int64_t> order = cases::stable_order(x);
    for (const int64_t few : {0, 1, 100}) {
      check_selection(x, 11902, order, 2, OneBlock{few, few});
    }
    check_selection(x, 11902, order, 2, OneBlock{50, 50}, true);
  }
}

void larger_selections() {
  for (const char* kind : {"normal", "few values"}) {
    const std::vector<float> x = cases::values_of(kind, 70007, 5);
    const std::vector<int64_t> order = cases::stable_order(x);
    for (const int multiprocessors : {1, 132}) check_selection(x, 49004, order, multiprocessors);
  }
}

void the_first_nan_is_named() {
  for (const int64_t n : {5, 17000}) {
    for (const int64_t k : {int64_t{0}, n / 2, n}) {
      for (const uint32_t bits : {0x7fc00000u, 0xff800001u}) {
        std::vector<float> x = cases::values_of("normal", n);
        std::memcpy(&x[n / 3], &bits, sizeof bits);
        std::memcpy(&x[n - 1], &bits, sizeof bits);
        Arena arena;
        std::vector<uint32_t> mask = cases::empty_mask(n);
        CHECK_EQUAL(topk_mask(x.data(), n, k, 0, mask.data(), nullptr, 2, std::ref(arena), nullptr),
                    n / 3);
      }
    }
  }
}

void nothing_to_select_from() {
  Arena arena;
  int64_t sums[2] = {1, 1};
  CHECK_EQUAL(topk_mask(nullptr, 0, 0, 1, nullptr, sums, 3, std::ref(arena), nullptr), -1);
  CHECK(sums[0] == 0 && sums[1] == 0);
}

// The capacity of the band and the size of the sample, for sizes that are too large for a test.
void plans_are_in_proportion() {
  for (const int64_t n : {int64_t{1} << 14, int64_t{1000000}, int64_t{1} << 31, int64_t{1} << 36}) {
    for (const double share : {1e-6, 0.3, 0.7, 0.999}) {
      const int64_t k = std::max<int64_t>(1, static_cast<int64_t>(share * static_cast<double>(n)));
      const TopkPlan plan = plan_topk(n, k);
      CHECK_EQUAL(plan.sample, sample_size(n));
      CHECK(plan.capacity <= n);
      CHECK(n < 10000000 || 8 * plan.capacity < n / 4);
      CHECK(!decided(plan.bounds[0]) || plan.bounds[0].range.low == kAboveAll);
    }
  }
  CHECK_EQUAL(digit_blocks(0, 4, 100, 8), 0u);
  CHECK_EQUAL(digit_blocks(1, 4, 100, 8), 1u);
  CHECK_EQUAL(digit_blocks(int64_t{1} << 40, 4, 1, 8), 512u);  // no block has 2³² values
  CHECK_EQUAL(digit_blocks(int64_t{1} << 30, 4, 132, 6), 6 * 132u);
}

void check_calls(const std::string& kind, int64_t n, int64_t k, int launches) {
  const std::vector<float> x = cases::values_of(kind, n);
  Arena arena;
  std::vector<uint32_t> mask = cases::empty_mask(n);
  int64_t sums[2];
  emulation::Runtime& runtime = emulation::runtime();
  runtime = {};
  topk_mask(x.data(), n, k, 1.0, mask.data(), sums, 2, std::ref(arena), nullptr);
  CHECK_EQUAL(runtime.launches, launches);
  CHECK_EQUAL(runtime.memsets, 1);
  CHECK_EQUAL(runtime.copies, 1);
  CHECK_EQUAL(runtime.waits, 1);
}

void launches_are_few() {
  check_calls("normal", 4000, 2800, 2);      // pass, band
  check_calls("normal", 40000, 28000, 3);    // sample, pass, band
  check_calls("normal", 200000, 140000, 4);  // and one digit of the band
  check_calls("equal", 40000, 28000, 5);     // and two launches for ties
  check_calls("normal", 40000, 40000, 1);
}

}  // namespace

int main() {
  emulation::each_order(selections_in_any_order_of_blocks);
  selections_are_the_stable_sort();
  entries_of_many_values_give_the_same();
  the_first_nan_is_named();
  larger_selections();
  more_than_one_block_searches();
  nothing_to_select_from();
  plans_are_in_proportion();
  launches_are_few();
  return check::failures() != 0;
}
