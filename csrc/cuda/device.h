// Code that all kernels share: numbers, 16-byte loads, reductions in a fixed order.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "launch.h"
#include "types.h"

namespace adapruner::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// The dynamic shared memory of a block, aligned to 16 bytes.
template <typename T>
__device__ T* dynamic_shared() {
#ifdef ADAPRUNER_EMULATE
  return static_cast<T*>(emulation::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}

// --- numbers ---------------------------------------------------------------------------------

// The type of arithmetic on a T.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

// Rounds to the nearest T, ties to even.
template <typename T>
__device__ T narrow(Accumulator<T> x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// Calls `work` with a value of the C++ type.
template <typename Work>
void dispatch(Type type, Work work) {
  switch (type) {
    case Type::kFloat:
      return work(float{});
    case Type::kDouble:
      return work(double{});
    case Type::kBFloat16:
      return work(__nv_bfloat16{});
    case Type::kHalf:
      return work(__half{});
  }
}

// Atomics on int64_t, for which CUDA uses other types.
__device__ inline void atomic_add(int64_t* at, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}
__device__ inline int64_t atomic_min(int64_t* at, int64_t value) {
  return atomicMin(reinterpret_cast<long long*>(at), static_cast<long long>(value));
}
__device__ inline int64_t atomic_max(int64_t* at, int64_t value) {
  return atomicMax(reinterpret_cast<long long*>(at), static_cast<long long>(value));
}

// --- memory ----------------------------------------------------------------------------------

// Several neighbours that are loaded and stored together.
template <typename T, int kSize = 16 / sizeof(T)>
struct alignas(sizeof(T) * kSize) Pack {
  static constexpr int size = kSize;
  T values[kSize];

  __device__ T& operator[](int i) { return values[i]; }
  __device__ const T& operator[](int i) const { return values[i]; }
};

// A type of kBytes bytes that one instruction loads or stores.
template <size_t kBytes>
struct Word;
template <>
struct Word<16> {
  using type = uint4;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<2> {
  using type = unsigned short;
};

// Loads a pack. p is aligned to the size of a pack.
template <typename P, typename T>
__device__ P load(const T* p) {
  using W = typename Word<sizeof(P)>::type;
  const W word = *reinterpret_cast<const W*>(p);
  P pack;
  memcpy(&pack, &word, sizeof pack);
  return pack;
}

// As load, for data that are read once. They leave the cache first.
template <typename P, typename T>
__device__ P load_once(const T* p) {
  using W = typename Word<sizeof(P)>::type;
  const W word = __ldcs(reinterpret_cast<const W*>(p));
  P pack;
  memcpy(&pack, &word, sizeof pack);
  return pack;
}

template <typename P, typename T>
__device__ void store(T* p, const P& pack) {
  using W = typename Word<sizeof(P)>::type;
  W word;
  memcpy(&word, &pack, sizeof word);
  *reinterpret_cast<W*>(p) = word;
}

// As store, for data that are not read soon.
template <typename P, typename T>
__device__ void store_once(T* p, const P& pack) {
  using W = typename Word<sizeof(P)>::type;
  W word;
  memcpy(&word, &pack, sizeof word);
  __stcs(reinterpret_cast<W*>(p), word);
}

// --- reductions ------------------------------------------------------------------------------

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Maximum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

struct Minimum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

// threadIdx.x, read again. Values computed from it need not stay in registers until then.
__device__ inline int thread_now() {
#ifdef ADAPRUNER_EMULATE
  return static_cast<int>(threadIdx.x);
#else
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
#endif
}

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ inline int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// Reduces the values of a warp, always in the same order. Every lane gets the result.
template <typename Op, typename T>
__device__ T warp_reduce(T value, Op op = {}) {
#pragma unroll
  for (int apart = kWarpSize / 2; apart > 0; apart /= 2) {
    // The value of the lower lane comes first, so that every lane has the same bits.
    const T other = __shfl_xor_sync(kFullWarp, value, apart);
    value = (threadIdx.x & apart) == 0 ? op(value, other) : op(other, value);
  }
  return value;
}

// Reduces the values of a one-dimensional block of whole warps. Every thread calls it and gets the
// result. `identity` stands for missing warps. It has a barrier before and after, so shared memory
// written before the call can be read after it.
template <typename Op, typename T>
__device__ T block_reduce(T value, T identity, Op op = {}) {
  __shared__ T partial[kWarpSize];
  value = warp_reduce(value, op);
  if (lane() == 0) partial[warp()] = value;
  __syncthreads();
  value = lane() < static_cast<int>(blockDim.x) / kWarpSize ? partial[lane()] : identity;
  value = warp_reduce(value, op);
  __syncthreads();  // `partial` can be written again
  return value;
}

}  // namespace adapruner::cuda
