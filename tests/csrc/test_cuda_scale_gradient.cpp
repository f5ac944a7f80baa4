// csrc/cuda/scale_gradient.cuh in the emulator, compared with plain products.
#define ADAPRUNER_EMULATE
#include <random>
#include <vector>

#include "../../csrc/cuda/scale_gradient.cuh"
#include "check.h"

namespace {

using namespace adapruner::cuda;

template <typename T>
void products(int64_t n, int offset, int multiprocessors, double upstream) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  std::vector<T> gradient(n + offset), out(n + 2 * offset + 1);
  for (T& x : gradient) x = narrow<T>(static_cast<Accumulator<T>>(normal(random)));
  const auto factor = static_cast<Accumulator<T>>(upstream);
  scale_gradient(gradient.data() + offset, out.data() + offset, n, &factor, multiprocessors,
                 nullptr);
  CHECK_EQUAL(widen(out[offset + n]), 0);  // nothing is written beyond the end
  for (int64_t i = 0; i < n; ++i) {
    const auto exact = widen(gradient[offset + i]) * factor;
    CHECK_EQUAL(widen(out[offset + i]), widen(narrow<T>(exact)));
  }
  scale_gradient(gradient.data() + offset, gradient.data() + offset, n, &factor, multiprocessors,
                 nullptr);
  for (int64_t i = 0; i < n; ++i) {
    CHECK_EQUAL(widen(gradient[offset + i]), widen(out[offset + i]));
  }
}

template <typename T>
void type() {
  for (const int64_t n : {0, 1, 7, 8, 31, 1024, 4099, 20000}) {
    for (const int offset : {0, 1}) {
      for (const double upstream : {1.0, -0.37}) products<T>(n, offset, 1, upstream);
      products<T>(n, offset, 132, 2.5);
    }
  }
}

}  // namespace

int main() {
  emulation::each_order([] {
    type<float>();
    type<double>();
    type<__nv_bfloat16>();
    type<__half>();
  });
  return check::failures() != 0;
}
