// Segments of values as rows. A row is the number of a segment plus one. Row 0 is for values in no
// segment.
#pragma once

#include "device.h"
#include "integers.h"

namespace adapruner::cuda {

struct Segments {
  Integers numbers;  // [n], aligned to 16 bytes
  int64_t count;

  __device__ bool is_inside(int64_t segment) const { return segment >= -1 && segment < count; }
  __device__ uint32_t row(int64_t segment) const {
    return is_inside(segment) ? static_cast<uint32_t>(segment + 1) : 0;
  }

  __device__ int64_t at(int64_t i) const { return numbers[i]; }

  // The rows of the values i … i + 3, where i is a multiple of 4, or of the first `size` of them.
  // Returns false if one of them is in a segment outside [−1, count).
  __device__ bool rows(int64_t i, int64_t size, uint32_t* out) const {
    int64_t found[4];
    if (size < 4) {
#pragma unroll
      for (int j = 0; j < 4; ++j) found[j] = j < size ? at(i + j) : -1;
    } else {
      numbers.as_typed([&](auto* p) { load_four(p + i, found); });
    }
    bool good = true;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      good = good && is_inside(found[j]);
      out[j] = row(found[j]);
    }
    return good;
  }

 private:
  template <typename T>
  __device__ static void load_four(const T* p, int64_t* out) {
    constexpr int kEach = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
    for (int j = 0; j < 4; j += kEach) {
      const auto pack = load_once<Pack<T, kEach>>(p + j);
#pragma unroll
      for (int c = 0; c < kEach; ++c) out[j + c] = static_cast<int64_t>(pack[c]);
    }
  }
};

}  // namespace adapruner::cuda
