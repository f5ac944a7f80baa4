// How work is cut into blocks. Plain functions of sizes, for the host and for kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../math/platform.h"

namespace adapruner::cuda {

template <typename T>
ADAPRUNER_HD constexpr T ceil_div(T a, T b) {
  return a / b + (a % b != 0);
}

// Number of blocks for `units` of work, with `per_block` units at a time. There are at most
// `resident` blocks for each multiprocessor, and each block goes on in strides of the grid. 0 if
// there is no work.
inline unsigned strided_blocks(int64_t units, int64_t per_block, int multiprocessors,
                               int resident) {
  return static_cast<unsigned>(
      std::min(ceil_div(units, per_block), int64_t{multiprocessors} * resident));
}

inline bool is_aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace adapruner::cuda
