// csrc/cuda/sampling_keys.cuh in the emulator, compared bit by bit with the formulas and the CPU's
// loop.
#define ADAPRUNER_EMULATE
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/cuda/sampling_keys.cuh"
#define ADAPRUNER_ISA isa_baseline
#include "../../csrc/cpu/simd/sampling_keys.cpp"
#include "check.h"

namespace {

using namespace adapruner;

void keys_are_those_of_the_cpu(int64_t n, int offset, int multiprocessors, double scale,
                               double turns, uint64_t key, double ceiling) {
  std::mt19937 random(static_cast<unsigned>(n));
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> m(n + offset);
  std::vector<uint8_t> age(n + offset);
  for (float& x : m) {
    const unsigned kind = random() % 8;
    x = kind == 0 ? -INFINITY : kind == 1 ? NAN : kind == 2 ? INFINITY : normal(random);
  }
  for (uint8_t& a : age) a = static_cast<uint8_t>(random());
  std::vector<float> found(n + 1, 7.0f), expected = found;
  cuda::write_sampling_keys(m.data() + offset, age.data() + offset, n, scale, turns, key, ceiling,
                            found.data(), multiprocessors, nullptr);
  double age_terms[kAges];
  for (int a = 0; a < kAges; ++a) age_terms[a] = age_term(turns, a);
  isa_baseline::write_keys(
      {m.data() + offset, age.data() + offset, scale, age_terms, key, ceiling, expected.data()}, 0,
      n);
  CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t hash = sample_hash(static_cast<uint64_t>(i), key);
    const double of_age = age_term(turns, age[offset + i]);
    const float one = sampling_key(scale, m[offset + i], ceiling, of_age, exponential(hash));
    CHECK(std::memcmp(&one, &expected[i], sizeof one) == 0);
  }
}

}  // namespace

int main() {
  emulation::each_order([] {
    for (const int64_t n : {0, 1, 255, 256, 257, 5003}) {
      for (const int offset : {0, 1}) keys_are_those_of_the_cpu(n, offset, 1, 1.7, 0.5, 1, 0.3);
      keys_are_those_of_the_cpu(n, 0, 132, -0.3, -2.0, (uint64_t{1} << 63) - 1, INFINITY);
    }
    keys_are_those_of_the_cpu(1003, 0, 2, 0.0, 0.0, 0, -1.0);
  });
  return check::failures() != 0;
}
