// A layout of logits [B, C, ...] that operators take as it is.
#pragma once

#include <ATen/core/Tensor.h>

namespace adapruner {

// Whether the rows of a sample lie side by side in memory, class after class, as those of images
// do. Their gradient lies as they do; what is neither like that nor has its classes last is brought
// into the latter order first. float64, for checks, too.
inline bool has_columns(const at::Tensor& logits) {
  return logits.dim() > 2 && logits.is_contiguous() && logits.scalar_type() != at::kDouble &&
         logits.numel() > logits.size(0) * logits.size(1);
}

}  // namespace adapruner
