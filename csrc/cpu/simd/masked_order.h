// The loop of masked_order: places of a keyed permutation whose samples have their bit set.
#pragma once

#include <cstdint>

#include "../../math/permutation.h"
#include "dispatch.h"

namespace adapruner {

// keep_permuted  appends π(position), …, π(position + n − 1) to indices, without those whose bit in
//                mask is 0. indices has room for n. Returns the number appended.
#define ADAPRUNER_DECLARE(isa)                                                                  \
  namespace isa {                                                                               \
  int64_t keep_permuted(const Permutation& p, int64_t position, int64_t n, const uint8_t* mask, \
                        int64_t* indices);                                                      \
  }
ADAPRUNER_FOR_EACH_ISA(ADAPRUNER_DECLARE)
#undef ADAPRUNER_DECLARE

}  // namespace adapruner
