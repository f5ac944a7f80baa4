// Cross entropy of one row of logits x with target y, as torch.nn.functional.cross_entropy defines
// it with class weights w and label smoothing α over C classes:
//   ℓ = (1 − α)·w_y·(lse − x_y) + (α / C)·Σ_c w_c·(lse − x_c)
//   ∂ℓ/∂x_j = A·softmax_j − B_j,  A = (1 − α)·w_y + α·W/C,  B_j = (1 − α)·w_y·[j = y] + α·w_j/C,  W
//   = Σ_c w_c
#pragma once

#include <cstdint>

#include "platform.h"

namespace adapruner {

// A float16 gradient is stored times this, a power of two, until backward knows the upstream
// gradient: s/B times a small probability would vanish in float16, and loss scaling comes too late
// for it.
constexpr double kHalfGradientScale = 1024.0;

template <typename T>
struct RowTerms {
  T target_weight;  // (1 − α)·w_y
  T smooth_weight;  // α / C
  T total_weight;   // W
};

template <typename T>
ADAPRUNER_HD inline RowTerms<T> row_terms(T target_class_weight, T total_weight, double smoothing,
                                          int64_t classes) {
  return {static_cast<T>((1.0 - smoothing) * target_class_weight),
          static_cast<T>(smoothing / static_cast<double>(classes)), total_weight};
}

// `target_loss` = lse − x_y, as log Σ_c exp(x_c − max) − (x_y − max); `weighted` = Σ_c w_c·(x_c −
// x_y), read only where there is smoothing. Differences, so that nothing of large logits cancels.
template <typename T>
ADAPRUNER_HD inline T row_loss(const RowTerms<T>& terms, T target_loss, T weighted) {
  T loss = terms.target_weight * target_loss;
  if (terms.smooth_weight != 0) {
    loss += terms.smooth_weight * (terms.total_weight * target_loss - weighted);
  }
  return loss;
}

// A of the gradient.
template <typename T>
ADAPRUNER_HD inline T softmax_weight(const RowTerms<T>& terms) {
  return terms.target_weight + terms.smooth_weight * terms.total_weight;
}

}  // namespace adapruner
