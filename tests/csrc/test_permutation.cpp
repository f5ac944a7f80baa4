// csrc/math/permutation.h: the grid and the rounds.
#include <vector>

#include "../../csrc/math/permutation.h"
#include "check.h"

namespace {

using namespace adapruner;

// The grid of every size has at least as many cells, and only a few more.
void grid_is_as_small_as_it_can_be() {
  std::vector<uint64_t> sizes;
  for (uint64_t n = 1; n <= 3000; ++n) sizes.push_back(n);
  for (uint64_t side : {uint64_t{65536}, uint64_t{94906267}, uint64_t{1} << 31}) {
    for (uint64_t n : {side * side - 1, side * side, side * side + 1, side * side + side}) {
      if (n <= kMostPermuted) sizes.push_back(n);
    }
  }
  for (const uint64_t n : sizes) {
    const Permutation p = make_permutation(n, 7);
    CHECK_EQUAL(p.n, n);
    CHECK_EQUAL(p.columns % 2, 0u);
    CHECK(p.rows <= uint32_t{1} << 31 && p.columns <= uint32_t{1} << 31);
    CHECK(p.rounds % 2 == 0 && p.rounds <= kMostRounds);
    const uint64_t rows = p.rows, cells = rows * p.columns;
    CHECK(rows * rows >= n && (rows - 1) * (rows - 1) < n);
    CHECK(cells >= n);
    CHECK(cells - n < 2 * rows);
  }
}

void each_sample_has_one_place() {
  for (uint64_t n = 1; n <= 2100; n += n < 300 ? 1 : 97) {
    for (const uint64_t key : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}}) {
      const Permutation p = make_permutation(n, key);
      std::vector<int> met(n, 0);
      for (uint64_t position = 0; position < n; ++position) {
        const uint64_t index = permuted(p, position);
        CHECK(index < n);
        if (index < n) ++met[index];
      }
      for (const int count : met) CHECK_EQUAL(count, 1);
    }
  }
}

void largest_sizes_stay_inside() {
  for (const uint64_t n : {kMostPermuted, kMostPermuted - 1, (uint64_t{1} << 32) + 1}) {
    const Permutation p = make_permutation(n, 5);
    for (uint64_t i = 0; i < 2000; ++i) {
      CHECK(permuted(p, i) < n);
      CHECK(permuted(p, n - 1 - i) < n);
    }
  }
}

// Sums of two numbers below a range of up to 2³¹, and products with a number in 2³²nds.
void words_stay_in_their_range() {
  for (const uint32_t range : {1u, 2u, 3u, 1000u, (1u << 31) - 1, 1u << 31}) {
    for (const uint32_t a : {0u, range / 3, range - 1}) {
      for (const uint32_t b : {0u, range / 2, range - 1}) {
        const uint64_t sum = static_cast<uint64_t>(a) + b;
        CHECK_EQUAL(add_modulo(a, b, range), static_cast<uint32_t>(sum % range));
      }
    }
    CHECK_EQUAL(scaled_word(0, range), 0u);
    CHECK_EQUAL(scaled_word(0xffffffffu, range), range - 1);
    CHECK_EQUAL(scaled_word(0x80000000u, range), range / 2);
  }
}

// About half of the bits of a mixed word change with each bit of its argument.
void words_are_well_mixed() {
  for (int bit = 0; bit < 64; ++bit) {
    int changed = 0;
    for (uint64_t x = 0; x < 256; ++x) {
      changed += __builtin_popcountll(mixed(x * 977) ^ mixed(x * 977 ^ uint64_t{1} << bit));
    }
    CHECK(changed > 256 * 29 && changed < 256 * 35);
  }
}

}  // namespace

int main() {
  grid_is_as_small_as_it_can_be();
  each_sample_has_one_place();
  largest_sizes_stay_inside();
  words_stay_in_their_range();
  words_are_well_mixed();
  return check::failures() == 0 ? 0 : 1;
}
