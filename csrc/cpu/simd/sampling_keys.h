// The loop of sampling_keys over a run of samples.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace adapruner {

struct SamplingKeys {
  const float* gate_logits;  // [N]
  const uint8_t* age;        // [N]
  double scale;
  const double* age_terms;  // [256], by age
  uint64_t key;
  double ceiling;
  float* keys;  // [N]
};

// write_keys     work.keys[i] ← the sampling_key of sample i, for i in [begin, end).
#define ADAPRUNER_DECLARE(isa)                                           \
  namespace isa {                                                        \
  void write_keys(const SamplingKeys& work, int64_t begin, int64_t end); \
  }
ADAPRUNER_FOR_EACH_ISA(ADAPRUNER_DECLARE)
#undef ADAPRUNER_DECLARE

}  // namespace adapruner
