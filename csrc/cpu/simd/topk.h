// Loops over gate logits for the exact top-k. A mask has bit i % 8 of byte i / 8 for value i. Its
// spare bits are written as 0. Counts and sums are added to the numbers already there.
#pragma once

#include <cstdint>

#include "../../math/topk.h"
#include "dispatch.h"

namespace adapruner {

// A value between the bounds of a bracket, to be decided later.
struct BandEntry {
  uint32_t key;
  uint32_t offset;
};

// Keys low ≤ high that should bracket the threshold. kLowestKey − 1 and kHighestKey + 1 leave a
// side open.
struct Bracket {
  uint32_t low;
  uint32_t high;
};

struct BracketCounts {
  int64_t from_high = 0;  // key ≥ high
  int64_t above_low = 0;  // key > low
};

struct TieCounts {
  int64_t above = 0;  // larger key
  int64_t equal = 0;
};

// scan_bracket   mask ← key ≥ high; adds to counts; appends the values strictly between the bounds
//                to band, with offsets from `offset` on. band has room for n + 2 more. Sets `nan`
//                if a value is NaN. Returns the number appended.
// sum_gates      sums[0] += Σ gate_fixed(slope, x), sums[1] += the number of x > 0, for n < 2³¹
//                values.
// count_ties     counts the values with a larger key, and the values with this key.
// rank_ties      sets the mask bits of the first `keep` values with this key, and clears those of
//                the others with this key. Returns the number set.
#define ADAPRUNER_DECLARE(isa)                                                             \
  namespace isa {                                                                          \
  int64_t scan_bracket(const float* x, int64_t n, const Bracket& bracket, uint32_t offset, \
                       uint8_t* mask, BandEntry* band, BracketCounts& counts, bool& nan);  \
  void sum_gates(const float* x, int64_t n, double slope, int64_t* sums);                  \
  void count_ties(const float* x, int64_t n, uint32_t key, TieCounts& counts);             \
  int64_t rank_ties(const float* x, int64_t n, uint32_t key, int64_t keep, uint8_t* mask); \
  }
ADAPRUNER_FOR_EACH_ISA(ADAPRUNER_DECLARE)
#undef ADAPRUNER_DECLARE

}  // namespace adapruner
