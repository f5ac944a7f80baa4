// Scratch memory from torch's caching allocator, and tensors in the form that kernels read.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <vector>

#include "plan.h"
#include "selection.h"

namespace adapruner::cuda {

// A Scratch on the device of a tensor. Pass it with std::ref.
class ScratchTensors {
 public:
  explicit ScratchTensors(const at::Tensor& like) : options_(like.options().dtype(at::kByte)) {}

  void* operator()(size_t bytes, Memory where) {
    const auto pinned = options_.device(at::kCPU).pinned_memory(true);
    held_.push_back(
        at::empty({static_cast<int64_t>(bytes)}, where == Memory::kPinned ? pinned : options_));
    return held_.back().mutable_data_ptr();
  }

 private:
  at::TensorOptions options_;
  std::vector<at::Tensor> held_;
};

// The same values, contiguous and aligned to 16 bytes.
inline at::Tensor dense(const at::Tensor& tensor) {
  const at::Tensor contiguous = tensor.contiguous();
  return is_aligned(contiguous.const_data_ptr(), 16) ? contiguous : contiguous.clone();
}

// A mask of n bits whose memory holds whole 32-bit words.
inline at::Tensor empty_mask(int64_t n, const at::Tensor& like) {
  at::Tensor mask = at::empty({ceil_div<int64_t>(n, 32) * 4}, like.options().dtype(at::kByte));
  return mask.resize_({ceil_div<int64_t>(n, 8)});
}

inline uint32_t* words_of(at::Tensor& mask) {
  return reinterpret_cast<uint32_t*>(mask.mutable_data_ptr<uint8_t>());
}

}  // namespace adapruner::cuda
