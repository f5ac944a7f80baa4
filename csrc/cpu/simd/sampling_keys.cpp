#include "sampling_keys.h"

#include "../../math/sampling.h"

namespace adapruner::ADAPRUNER_ISA {

void write_keys(const SamplingKeys& work, int64_t begin, int64_t end) {
  constexpr int64_t kStep = 256;
  double of_age[kStep], exponentials[kStep];
  const double scale = work.scale, ceiling = work.ceiling;
  const uint64_t key = work.key;
  for (int64_t first = begin; first < end; first += kStep) {
    const int64_t size = end - first < kStep ? end - first : kStep;
    const float* m = work.gate_logits + first;
    const uint8_t* age = work.age + first;
    float* keys = work.keys + first;
    // Several loops. Two logarithms in one loop would be a chain of operations that is too long to
    // overlap with the next samples. And not every instruction set can look up a table in vectors.
    for (int64_t j = 0; j < size; ++j) of_age[j] = work.age_terms[age[j]];
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) {
      exponentials[j] = exponential(sample_hash(static_cast<uint64_t>(first + j), key));
    }
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) {
      keys[j] = sampling_key(scale, m[j], ceiling, of_age[j], exponentials[j]);
    }
  }
}

}  // namespace adapruner::ADAPRUNER_ISA
