// The layout of logits [B, C, ...] that operators read without a copy.
#pragma once

#include <ATen/core/Tensor.h>

namespace adapruner {

// True if the rows of a sample lie side by side in memory, class after class, as in the output of a
// convolution. The gradient then has the same layout. All other logits are read with the classes
// last, and are copied into this layout if needed. float64, which is for checks, is read with the
// classes last too.
inline bool has_columns(const at::Tensor& logits) {
  return logits.dim() > 2 && logits.is_contiguous() && logits.scalar_type() != at::kDouble &&
         logits.numel() > logits.size(0) * logits.size(1);
}

}  // namespace adapruner
