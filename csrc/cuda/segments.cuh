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

  __device__ bool is_inside(int64_t segment) const { return segment >= -1 && segment < count; }
  __device__ uint32_t row(int64_t segment) const {
    return is_inside(segment) ? static_cast<uint32_t>(segment + 1) : 0;
  }

  __device__ int64_t at(int64_t i) const {
    switch (type) {
      case Integers::kUint8:
        return static_cast<const uint8_t*>(data)[i];
      case Integers::kInt8:
        return static_cast<const int8_t*>(data)[i];
      case Integers::kInt16:
        return static_cast<const int16_t*>(data)[i];
      case Integers::kInt32:
        return static_cast<const int32_t*>(data)[i];
      default:
        return static_cast<const int64_t*>(data)[i];
    }
  }

  // The rows of the values i … i + 3, i being a multiple of 4, or of the first `size` of them;
  // false if one of these is in a segment outside [−1, count).
  __device__ bool rows(int64_t i, int64_t size, uint32_t* out) const {
    int64_t found[4];
    if (size < 4) {
#pragma unroll
      for (int j = 0; j < 4; ++j) found[j] = j < size ? at(i + j) : -1;
    } else {
      switch (type) {
        case Integers::kUint8:
          load_four<uint8_t>(i, found);
          break;
        case Integers::kInt8:
          load_four<int8_t>(i, found);
          break;
        case Integers::kInt16:
          load_four<int16_t>(i, found);
          break;
        case Integers::kInt32:
          load_four<int32_t>(i, found);
          break;
        default:
          load_four<int64_t>(i, found);
      }
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
  __device__ void load_four(int64_t i, int64_t* out) const {
    constexpr int kEach = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
    for (int j = 0; j < 4; j += kEach) {
      const auto pack = load_once<Pack<T, kEach>>(static_cast<const T*>(data) + i + j);
#pragma unroll
      for (int c = 0; c < kEach; ++c) out[j + c] = static_cast<int64_t>(pack[c]);
    }
  }
};

}  // namespace adapruner::cuda
