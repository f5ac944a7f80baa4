// 16 bytes of a row in the four registers that a load fills. Values are unpacked one by one. A
// struct of half types would take a register for each value.
#pragma once

#include "device.h"

namespace adapruner::cuda {

template <typename T>
struct Words {
  static constexpr int kSize = 16 / sizeof(T);
  using A = Accumulator<T>;

  uint4 words;

  // j is known to the compiler.
  __device__ A operator[](int j) const {
    if constexpr (sizeof(T) == 8) {
      const uint64_t low = j == 0 ? words.x : words.z, high = j == 0 ? words.y : words.w;
      return __longlong_as_double(static_cast<long long>(high << 32 | low));
    } else if constexpr (sizeof(T) == 4) {
      return __uint_as_float(word(j));
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      const unsigned pair = word(j / 2);
      return __uint_as_float(j % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    } else {
      const auto bits = static_cast<unsigned short>(word(j / 2) >> (j % 2 * 16));
      __half value;
      memcpy(&value, &bits, sizeof value);
      return widen(value);
    }
  }

  __device__ static Words of(const A (&values)[kSize]) {
    Words result;
    if constexpr (sizeof(T) >= 4) {
      memcpy(&result.words, values, 16);
    } else {
      unsigned pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = pair(values[2 * i], values[2 * i + 1]);
      result.words = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    return result;
  }

  // Makes the compiler forget the values. Otherwise it would keep all of them unpacked from one use
  // to the next.
  __device__ void forget() {
#ifndef ADAPRUNER_EMULATE
    asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
#endif
  }

  __device__ static Words zero() { return {make_uint4(0, 0, 0, 0)}; }

 private:
  __device__ unsigned word(int i) const {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
  }

  __device__ static unsigned pair(float low, float high) {
#ifndef ADAPRUNER_EMULATE
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {  // one instruction for both
      const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
      unsigned bits;
      memcpy(&bits, &both, sizeof bits);
      return bits;
    } else if constexpr (std::is_same_v<T, __half>) {
      const __half2 both = __floats2half2_rn(low, high);
      unsigned bits;
      memcpy(&bits, &both, sizeof bits);
      return bits;
    }
#endif
    const T values[2] = {narrow<T>(low), narrow<T>(high)};
    unsigned bits;
    memcpy(&bits, values, sizeof bits);
    return bits;
  }
};

}  // namespace adapruner::cuda
