// Values to select from, and the expected selection from a stable sort.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cuda/selection.h"
#include "../../csrc/math/topk.h"

namespace cases {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline const std::vector<std::string>& kinds() {
  static const std::vector<std::string> all = {
      "normal",    "equal",      "zeros of both signs", "two values",       "few values",
      "ascending", "descending", "nearly constant",     "infinities",       "subnormal",
      "huge",      "sorted few", "every magnitude",     "misleading above", "misleading inside"};
  return all;
}

// In "misleading" kinds, the members of the sample of adapruner::sample_index are unlike the other
// values.
inline std::vector<float> values_of(const std::string& kind, int64_t n, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.8f, 0.3f);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  std::vector<float> x(n);
  for (int64_t i = 0; i < n; ++i) {
    const float m = normal(random), u = uniform(random);
    const float sign = u < 0.5f ? -1.0f : 1.0f;
    float& v = x[i];
    v = m;
    if (kind == "equal") v = 1.0f;
    if (kind == "zeros of both signs") v = 0.0f * sign;
    if (kind == "two values") v = u < 0.37f ? 0.25f : -3.0f;
    if (kind == "few values" || kind == "sorted few") v = std::round(m * 3) * sign;
    if (kind == "nearly constant") v = u < 0.01f ? 1.000001f : 1.0f;
    if (kind == "infinities") v = u < 0.2f ? kInfinity : u < 0.4f ? -kInfinity : m;
    if (kind == "subnormal") v = std::ldexp(std::round(m * 8) * sign, -147);
    if (kind == "huge") v = sign * 3.4e38f * std::min(m, 1.0f);
    if (kind == "every magnitude") v = sign * std::exp(160.0f * uniform(random) - 80.0f);
    if (kind == "misleading above") v = m + 100.0f;
    if (kind == "misleading inside") v = 0.3f + 1e-4f * m;
  }
  if (kind == "ascending" || kind == "sorted few") std::sort(x.begin(), x.end());
  if (kind == "descending") std::sort(x.begin(), x.end(), std::greater<float>());
  if (kind.starts_with("misleading")) {
    const int64_t size = adapruner::sample_size(n);
    for (int64_t s = 0; s < size; ++s) {
      x[adapruner::sample_index(s, size, n)] = uniform(random);
    }
  }
  return x;
}

// Indices of the values from the largest to the smallest. Indices of equal values are ascending.
inline std::vector<int64_t> stable_order(const std::vector<float>& x) {
  std::vector<int64_t> order(x.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return x[a] > x[b]; });
  return order;
}

inline void set(std::vector<uint32_t>& mask, int64_t i) { mask[i / 32] |= 1u << (i % 32); }
inline std::vector<uint32_t> empty_mask(int64_t n) { return std::vector<uint32_t>((n + 31) / 32); }

// Memory for a launcher. Each piece is allocated by itself, so that AddressSanitizer knows its
// bounds, and is filled with garbage.
class Arena {
 public:
  void* operator()(size_t bytes, adapruner::cuda::Memory) {
    pieces_.emplace_back(new std::vector<Piece>((bytes + sizeof(Piece) - 1) / sizeof(Piece)));
    for (Piece& piece : *pieces_.back()) std::fill(piece.bytes, piece.bytes + 16, 0xa5);
    return pieces_.back()->data();
  }

 private:
  struct alignas(16) Piece {
    unsigned char bytes[16];
  };
  std::vector<std::unique_ptr<std::vector<Piece>>> pieces_;
};

}  // namespace cases
