// Code that the cross entropy operators share on the CPU: the facts about a batch that need no
// logits, the loop over rows of logits, and the results from the losses of the rows.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "simd/cross_entropy.h"

namespace adapruner::cpu {

// A batch of B samples with R rows each and C classes. Its tensors are checked and contiguous.
struct CrossEntropyBatch {
  int64_t samples, rows, classes;  // B, R, C
  at::Tensor target;               // [B·R] int64
  at::Tensor state;
  at::Tensor class_weight;  // [C] in the dtype of the losses; undefined if all are 1
  double total_weight;      // sum of the class weights
  double label_smoothing;
  int64_t ignore_index;
  std::vector<int64_t> counts;  // [B]: rows that are not ignored
  std::vector<double> weights;  // [B]: s_i

  // Factor of the gradient of each row of sample b.
  double row_scale(int64_t b) const {
    return weights[b] / static_cast<double>(samples * std::max<int64_t>(counts[b], 1));
  }
};

// type: the dtype of the losses. The other arguments are those of the operators. Their shapes have
// been checked. A target or an id out of range is an IndexError.
CrossEntropyBatch make_batch(at::ScalarType type, int64_t classes, const at::Tensor& target,
                             const at::Tensor& ids, const at::Tensor& gate_logits,
                             const at::Tensor& state, const std::optional<at::Tensor>& weight,
                             int64_t ignore_index, double label_smoothing);

struct Losses {
  at::Tensor loss, sample_loss, pressure;
};

// sums [B]: the sum of the losses of each sample's rows that are not ignored. A: float or double,
// the dtype of the losses.
template <typename A>
Losses losses_of(const CrossEntropyBatch& batch, const std::vector<double>& sums);

// Losses of n rows, in parallel. Their gradient is written too, unless it is null. It may overwrite
// the logits. T is the dtype of the logits. columns is 0 if the classes are last in memory, as they
// always are for double. Otherwise it is the number of rows of a sample, which lie side by side,
// class after class.
template <typename T>
void each_row(const CrossEntropyBatch& batch, const T* logits, const int64_t* targets,
              const Acc<T>* row_scale, int64_t n, int64_t columns, Acc<T>* row_loss, T* gradient) {
  CrossEntropyRows<T> work{};
  work.logits = logits;
  work.targets = targets;
  work.row_scale = row_scale;
  work.class_weight =
      batch.class_weight.defined() ? batch.class_weight.const_data_ptr<Acc<T>>() : nullptr;
  work.total_weight = static_cast<Acc<T>>(batch.total_weight);
  work.smoothing = batch.label_smoothing;
  work.classes = batch.classes;
  work.columns = columns;
  work.row_loss = row_loss;
  work.gradient = gradient;
  constexpr int64_t kGrain = 16384;  // elements that are worth a thread
  if constexpr (!std::is_same_v<T, double>) {
    if (columns > 0) {
      const int64_t strips = n / columns * strips_of_sample(batch.classes, columns);
      const int64_t values = strip_columns(batch.classes) * batch.classes;
      at::parallel_for(0, strips, std::max<int64_t>(1, kGrain / values),
                       [&](int64_t begin, int64_t end) {
                         ADAPRUNER_DISPATCH(cross_entropy_columns, work, begin, end);
                       });
      return;
    }
  }
  at::parallel_for(0, n, std::max<int64_t>(1, kGrain / batch.classes),
                   [&](int64_t begin, int64_t end) {
                     ADAPRUNER_DISPATCH(cross_entropy_rows, work, begin, end);
                   });
}

}  // namespace adapruner::cpu
