// The segments that values are in, as rows: a row is a segment's number plus one; row 0 is for
// values in no segment.
#pragma once

#include "device.h"
#include "selection.h"

namespace adapruner::cuda {

struct Segments {
  const void* data;  // [n], aligned to 16 bytes
  Integers type;
  int64_t count;

  // The rows of the values i … i + 3, i being a multiple of 4, or of the first `size` of them;
  // false if one of these is in a segment outside [−1, count).
  __device__ bool rows(int64_t i, int64_t size, uint32_t* out) const {
    int64_t found[4];
    switch (type) {
      case Integers::kUint8:
        load_four<uint8_t>(i, size, found);
        break;
      case Integers::kInt8:
        load_four<int8_t>(i, size, found);
        break;
      case Integers::kInt16:
        load_four<int16_t>(i, size, found);
        break;
      case Integers::kInt32:
        load_four<int32_t>(i, size, found);
        break;
      case Integers::kInt64:
        load_four<int64_t>(i, size, found);
        break;
    }
    bool good = true;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool inside = found[j] >= -1 && found[j] < count;
      good = good && inside;
      out[j] = inside ? static_cast<uint32_t>(found[j] + 1) : 0;
    }
    return good;
  }

 private:
  template <typename T>
  __device__ void load_four(int64_t i, int64_t size, int64_t* out) const {
    const T* const x = static_cast<const T*>(data) + i;
    if (size >= 4) {
      constexpr int kEach = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
      for (int j = 0; j < 4; j += kEach) {
        const auto pack = load_once<Pack<T, kEach>>(x + j);
#pragma unroll
        for (int c = 0; c < kEach; ++c) out[j + c] = static_cast<int64_t>(pack[c]);
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) out[j] = j < size ? static_cast<int64_t>(x[j]) : -1;
  }
};

}  // namespace adapruner::cuda
