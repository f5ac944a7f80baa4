// Loops over gate logits for the exact top-k. A mask has bit i % 8 of byte i / 8 for value i; its
// spare bits are written as 0. Counts and sums are added to what is there.
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

// Keys low ≤ high that the threshold is hoped to lie between; kLowestKey − 1 and kHighestKey + 1
// leave a side open.
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

// scan_bracket   mask ← key ≥ high; counts; appends what lies strictly between the bounds to band,
//                which has room for n + 2 more, with offsets from `offset` on; `nan` becomes true
//                if there is one. Returns the number appended.
// sum_gates      sums[0] += Σ gate_fixed(slope, x), sums[1] += number of x > 0, of n < 2³¹ values.
// count_ties     values with a larger key than the given one, and with that key.
// rank_ties      of the values with that key the first `keep` are set in mask, the others cleared.
//                Returns the number set.
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
