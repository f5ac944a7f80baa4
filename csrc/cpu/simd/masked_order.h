// The loop of masked_order, over places of a keyed permutation.
#pragma once

#include <cstdint>

#include "../../math/permutation.h"
#include "dispatch.h"

namespace adapruner {

// keep_permuted  appends π(position), …, π(position + n − 1) to indices, without the samples whose
//                bit in mask is 0. indices has room for n. Returns the number appended.
#define ADAPRUNER_DECLARE(isa)                                                                  \
  namespace isa {                                                                               \
  int64_t keep_permuted(const Permutation& p, int64_t position, int64_t n, const uint8_t* mask, \
                        int64_t* indices);                                                      \
  }
ADAPRUNER_FOR_EACH_ISA(ADAPRUNER_DECLARE)
#undef ADAPRUNER_DECLARE

}  // namespace adapruner
