// Types in the interface of the selection launchers. They need neither torch nor nvcc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace adapruner::cuda {

// kPinned is pinned memory of the host, for results that are read back. A copy to other host memory
// is slower.
enum class Memory { kDevice, kPinned };

// Gives memory to a launcher. After the launcher has returned, later work on the same stream may
// use the memory again.
using Scratch = std::function<void*(size_t bytes, Memory where)>;

template <typename T>
T* scratch_array(const Scratch& scratch, int64_t size, Memory where = Memory::kDevice) {
  return static_cast<T*>(scratch(sizeof(T) * static_cast<size_t>(size), where));
}

// Errors in the arguments of a segmented top-k. −1 means no error.
struct SegmentedErrors {
  int64_t nan = -1;      // index of the first NaN
  int64_t outside = -1;  // index of the first segment out of range
  int64_t quota = -1;    // first segment whose quota is out of range
};

}  // namespace adapruner::cuda
