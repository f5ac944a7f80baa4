// Memory on the device that a launcher asks for as it goes, and that is there until it returns: the
// work it has queued may still use it, in the order of its stream.
#pragma once

#include <cstddef>
#include <functional>

namespace adapruner::cuda {

using Scratch = std::function<void*(size_t bytes)>;

template <typename T>
T* scratch_array(const Scratch& scratch, int64_t size) {
  return static_cast<T*>(scratch(sizeof(T) * static_cast<size_t>(size)));
}

}  // namespace adapruner::cuda
