// A part of CUDA that is large enough to run the kernels of csrc/cuda/ on a CPU, thread by thread,
// under the sanitizers.
//
// Blocks run one after another. The threads of a block are fibers that switch at barriers and warp
// operations only. The emulator finds wrong indices, missing barriers (set_order runs threads and
// blocks in other orders), warp operations that some of their lanes do not reach, and results that
// depend on an order. It cannot find races between instructions, and it cannot run blocks that wait
// for one another. Code that is undefined in CUDA ends the program with a message.
//
// All names of CUDA are here, in types.h and in runtime.h. Everything else is in namespace
// emulation.
#pragma once

#ifndef ADAPRUNER_EMULATE
#define ADAPRUNER_EMULATE
#endif

#include <bit>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "fibers.h"
#include "runtime.h"
#include "types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

// --- threads ---------------------------------------------------------------------------------

inline const dim3 &threadIdx = emulation::state().thread_index,
                  &blockIdx = emulation::state().block_index,
                  &blockDim = emulation::state().block_size,
                  &gridDim = emulation::state().grid_size;
constexpr int warpSize = 32;

using Where = std::source_location;

inline int __syncthreads_count(int predicate, Where where = Where::current()) {
  return emulation::block_barrier(predicate != 0, where);
}
inline void __syncthreads(Where where = Where::current()) {
  emulation::block_barrier(false, where);
}
inline int __syncthreads_or(int predicate, Where where = Where::current()) {
  return emulation::block_barrier(predicate != 0, where) > 0;
}
inline int __syncthreads_and(int predicate, Where where = Where::current()) {
  return emulation::block_barrier(predicate == 0, where) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- warps -----------------------------------------------------------------------------------

inline void __syncwarp(unsigned mask = 0xffffffffu, Where where = Where::current()) {
  emulation::exchange(mask, 0, where);
}

inline unsigned __activemask() { return emulation::alive(); }

namespace emulation {

// Gives every lane of a mask the value of the lane `from` that it names.
template <typename T>
T shuffle(unsigned mask, T value, int from, Where where) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const Exchange got = exchange(mask, bits, where);
  if (!(got.present >> from & 1)) fail("reads a lane that takes no part in the shuffle", where);
  std::memcpy(&value, &got.values[from], sizeof value);
  return value;
}

inline void check_width(int width, Where where) {
  if (width < 1 || width > 32 || !std::has_single_bit(unsigned(width))) {
    fail("shuffles with a width that is not a power of two up to 32", where);
  }
}

}  // namespace emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, Where where = Where::current()) {
  emulation::check_width(width, where);
  const int first = emulation::lane() & ~(width - 1);
  return emulation::shuffle(mask, value, first + (from & (width - 1)), where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int apart, int width = 32,
                  Where where = Where::current()) {
  emulation::check_width(width, where);
  const int lane = emulation::lane(), from = lane ^ apart;
  return emulation::shuffle(mask, value, from < (lane & ~(width - 1)) + width ? from : lane, where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned apart, int width = 32,
                   Where where = Where::current()) {
  emulation::check_width(width, where);
  const int lane = emulation::lane(), from = lane + static_cast<int>(apart);
  return emulation::shuffle(mask, value, from < (lane & ~(width - 1)) + width ? from : lane, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned apart, int width = 32,
                 Where where = Where::current()) {
  emulation::check_width(width, where);
  const int lane = emulation::lane(), from = lane - static_cast<int>(apart);
  return emulation::shuffle(mask, value, from >= (lane & ~(width - 1)) ? from : lane, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, Where where = Where::current()) {
  const emulation::Exchange got = emulation::exchange(mask, predicate != 0, where);
  unsigned set = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (got.present >> lane & 1) set |= unsigned(got.values[lane]) << lane;
  }
  return set;
}
inline int __any_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return __ballot_sync(mask, predicate == 0, where) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, Where where = Where::current()) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const emulation::Exchange got = emulation::exchange(mask, bits, where);
  unsigned same = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((got.present >> lane & 1) && got.values[lane] == bits) same |= 1u << lane;
  }
  return same;
}

namespace emulation {

template <typename T, typename Op>
T reduce(unsigned mask, T value, Where where, Op op) {
  static_assert(std::is_same_v<T, unsigned> || std::is_same_v<T, int>);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const Exchange got = exchange(mask, bits, where);
  bool first = true;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(got.present >> lane & 1)) continue;
    const T other = static_cast<T>(static_cast<uint32_t>(got.values[lane]));
    value = first ? other : op(value, other);
    first = false;
  }
  return value;
}

}  // namespace emulation

template <typename T>
T __reduce_add_sync(unsigned mask, T value, Where where = Where::current()) {
  return emulation::reduce(mask, value, where,
                           [](T a, T b) { return T(unsigned(a) + unsigned(b)); });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, Where where = Where::current()) {
  return emulation::reduce(mask, value, where, [](T a, T b) { return b < a ? b : a; });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, Where where = Where::current()) {
  return emulation::reduce(mask, value, where, [](T a, T b) { return a < b ? b : a; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, Where where = Where::current()) {
  return emulation::reduce(mask, value, where, [](unsigned a, unsigned b) { return a & b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, Where where = Where::current()) {
  return emulation::reduce(mask, value, where, [](unsigned a, unsigned b) { return a | b; });
}

// --- atomics: for the types that CUDA has them for ---------------------------------------------

namespace emulation {

template <typename T, typename... Ts>
constexpr bool is_one_of = (std::is_same_v<T, Ts> || ...);
template <typename T>
constexpr bool is_word = is_one_of<T, int, unsigned, unsigned long long>;

template <typename T>
T replace(T* at, T value) {
  const T old = *at;
  *at = value;
  return old;
}

}  // namespace emulation

template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  static_assert(emulation::is_word<T> || emulation::is_one_of<T, float, double>);
  if constexpr (std::is_same_v<T, int>) {
    return emulation::replace(at, int(unsigned(*at) + unsigned(value)));
  } else {
    return emulation::replace(at, *at + value);
  }
}
template <typename T>
T atomicSub(T* at, std::type_identity_t<T> value) {
  static_assert(emulation::is_one_of<T, int, unsigned>);
  return emulation::replace(at, T(unsigned(*at) - unsigned(value)));
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  static_assert(emulation::is_word<T> || std::is_same_v<T, long long>);
  return emulation::replace(at, value < *at ? value : *at);
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  static_assert(emulation::is_word<T> || std::is_same_v<T, long long>);
  return emulation::replace(at, *at < value ? value : *at);
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  static_assert(emulation::is_word<T> || std::is_same_v<T, float>);
  return emulation::replace(at, value);
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  static_assert(emulation::is_word<T> || std::is_same_v<T, unsigned short>);
  return emulation::replace(at, *at == expected ? value : *at);
}
template <typename T>
T atomicAnd(T* at, std::type_identity_t<T> value) {
  static_assert(emulation::is_word<T>);
  return emulation::replace(at, *at & value);
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  static_assert(emulation::is_word<T>);
  return emulation::replace(at, *at | value);
}
template <typename T>
T atomicXor(T* at, std::type_identity_t<T> value) {
  static_assert(emulation::is_word<T>);
  return emulation::replace(at, *at ^ value);
}
inline unsigned atomicInc(unsigned* at, unsigned last) {
  return emulation::replace(at, *at >= last ? 0u : *at + 1);
}

// --- bits, loads -------------------------------------------------------------------------------

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}

template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcs(const T* at) {
  return *at;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}
template <typename T>
void __stcs(T* at, T value) {
  *at = value;
}
template <typename T>
void __stcg(T* at, T value) {
  *at = value;
}
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
