// What the launchers of selections take and give beside pointers; needs neither torch nor nvcc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace adapruner::cuda {

// Pinned memory is the host's, for what is read back: a copy to other memory takes a detour.
enum class Memory { kDevice, kPinned };

// Memory that a launcher asks for as it goes. It may be used again once the launcher has returned,
// by work that comes later on the same stream.
using Scratch = std::function<void*(size_t bytes, Memory where)>;

template <typename T>
T* scratch_array(const Scratch& scratch, int64_t size, Memory where = Memory::kDevice) {
  return static_cast<T*>(scratch(sizeof(T) * static_cast<size_t>(size), where));
}

// What was wrong with the values of a segmented top-k: nothing where all are −1.
struct SegmentedErrors {
  int64_t nan = -1;      // index of the first NaN
  int64_t outside = -1;  // of the first segment out of range
  int64_t quota = -1;    // the first segment whose quota is out of range
};

}  // namespace adapruner::cuda
