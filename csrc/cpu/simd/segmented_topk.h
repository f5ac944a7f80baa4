// Loops over gate logits and their segments. A row is the number of a segment plus one. Row 0 is
// for values in no segment.
#pragma once

#include <cstdint>

#include "../../math/topk.h"
#include "dispatch.h"

namespace adapruner {

// load_rows    rows ← segments + 1, or 0 if the segment is not in [0, count). Returns false if a
//              segment is not in [−1, count).
// value_slots  slots ← row · 2^bits + the bin of the value. Returns true if a value is NaN.
// split_rows   sets bits: in `kept` for values whose key is above the range of their row, in
//              `candidates` for values whose key is in it. candidates has whole words. Its bits
//              beyond n are 0.
#define ADAPRUNER_DECLARE_ROWS(T) \
  bool load_rows(const T* segments, int64_t n, int64_t count, uint32_t* rows);
#define ADAPRUNER_DECLARE(isa)                                                             \
  namespace isa {                                                                          \
  ADAPRUNER_DECLARE_ROWS(uint8_t)                                                          \
  ADAPRUNER_DECLARE_ROWS(int8_t)                                                           \
  ADAPRUNER_DECLARE_ROWS(int16_t)                                                          \
  ADAPRUNER_DECLARE_ROWS(int32_t)                                                          \
  ADAPRUNER_DECLARE_ROWS(int64_t)                                                          \
  bool value_slots(const float* x, const uint32_t* rows, int64_t n, const ValueBins& bins, \
                   int bits, uint32_t* slots);                                             \
  void split_rows(const float* x, const uint32_t* rows, int64_t n, const KeyRange* ranges, \
                  uint8_t* kept, uint64_t* candidates);                                    \
  }
ADAPRUNER_FOR_EACH_ISA(ADAPRUNER_DECLARE)
#undef ADAPRUNER_DECLARE
#undef ADAPRUNER_DECLARE_ROWS

}  // namespace adapruner
