// Cross entropy of one row of logits x with target y, as torch.nn.functional.cross_entropy defines
// it with class weights w and label smoothing α over C classes:
//   ℓ = (1 − α)·w_y·(lse − x_y) + (α / C)·Σ_c w_c·(lse − x_c)
//   ∂ℓ/∂x_j = A·softmax_j − B_j,  A = (1 − α)·w_y + α·W/C,  B_j = (1 − α)·w_y·[j = y] + α·w_j/C,  W
//   = Σ_c w_c
#pragma once

#include <cstdint>

#include "platform.h"

namespace adapruner {

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

// All of the logits less their maximum, so that large ones cancel nothing: `log_sum` = lse − max,
// `target_logit` = x_y − max, `weighted_logits` = Σ_c w_c·(x_c − max), read only where there is
// smoothing.
template <typename T>
ADAPRUNER_HD inline T row_loss(const RowTerms<T>& terms, T log_sum, T target_logit,
                               T weighted_logits) {
  T loss = terms.target_weight * (log_sum - target_logit);
  if (terms.smooth_weight != 0) {
    loss += terms.smooth_weight * (terms.total_weight * log_sum - weighted_logits);
  }
  return loss;
}

// A of the gradient.
template <typename T>
ADAPRUNER_HD inline T softmax_weight(const RowTerms<T>& terms) {
  return terms.target_weight + terms.smooth_weight * terms.total_weight;
}

}  // namespace adapruner
