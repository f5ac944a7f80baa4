// Cross entropy of one row of logits x with target y, as torch.nn.functional.cross_entropy defines
// it, with class weights w and label smoothing α over C classes:
//   ℓ = (1 − α)·w_y·(lse − x_y) + (α / C)·Σ_c w_c·(lse − x_c)
//   ∂ℓ/∂x_j = A·softmax_j − B_j
//   A = (1 − α)·w_y + α·W/C
//   B_j = (1 − α)·w_y·[j = y] + α·w_j/C
//   W = Σ_c w_c
#pragma once

#include <cstdint>

#include "platform.h"

namespace adapruner {

// A float16 gradient is stored multiplied by this power of two, until the backward pass knows the
// upstream gradient. Otherwise s/B times a small probability would round to 0 in float16, before
// loss scaling could prevent it.
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

// Loss of a row. `target_loss` is lse − x_y, computed as log Σ_c exp(x_c − max) − (x_y − max).
// `weighted` is Σ_c (α/C)·w_c·(x_c − x_y), and is read only with label smoothing. Both are
// differences, so that large logits do not cancel. Each term has its factor before it is summed, so
// that a sum over many classes does not overflow. If target_loss is not finite, `weighted` is left
// out: the loss is not finite either, and inf − inf would be NaN.
template <typename T>
ADAPRUNER_HD inline T row_loss(const RowTerms<T>& terms, T target_loss, T weighted) {
  T loss = terms.target_weight * target_loss;
  if (terms.smooth_weight != 0 && target_loss - target_loss == 0) {
    loss += terms.smooth_weight * terms.total_weight * target_loss - weighted;
  }
  return loss;
}

// A in the gradient.
template <typename T>
ADAPRUNER_HD inline T softmax_weight(const RowTerms<T>& terms) {
  return terms.target_weight + terms.smooth_weight * terms.total_weight;
}

}  // namespace adapruner
