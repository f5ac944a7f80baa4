// Plain data about a batch, for the kernels of the losses and for the host.
#pragma once

#include "../math/cross_entropy.h"
#include "integers.h"

namespace adapruner::cuda {

// Facts about a sample that are computed before its rows are read, if it has more rows than a block
// processes at a time.
struct SampleRows {
  double weight;  // s; negative: the sample takes no part
  double scale;   // factor of the gradient of its rows
  int64_t count;  // rows that are not ignored
  unsigned done;  // number of blocks that have counted their rows
};

// A batch of B samples, and where its results go. A is the dtype of the losses: double for float64,
// otherwise float.
struct LossBatch {
  int64_t samples;  // B
  Integers ids;     // [B]
  const float* gate_logits;
  int64_t gates;   // N
  int64_t* state;  // errors are written here
  // Results.
  void* loss;         // A
  void* sample_loss;  // A [B]
  float* pressure;    // [B]
  // Scratch.
  int64_t units;    // units of work; each adds to the loss
  double* partial;  // [units]
  unsigned* done;   // finished units, 0 at the start; null if there is one unit
};

constexpr int kLossThreads = 256;  // samples of a unit of masked_loss

// A batch with R rows of C classes for each sample.
struct CrossEntropyBatch : LossBatch {
  int64_t rows, classes;  // R, C
  Integers target;        // [B·R]
  int64_t ignore_index;
  const void* class_weight;     // A [C]; null: ones
  const void* total_weight;     // A, sum of the class weights; read with smoothing only
  RowTerms<double> unit_terms;  // of a row whose target has weight 1, without total_weight
  double unit_scale;            // gradient factor of a sample with one row and weight 1
  SampleRows* sample_rows;      // [B]; scratch of prepared plans
};

// Strides of the logits of a row, or of its gradient, in elements.
struct Strides {
  int64_t sample, row, one;  // one: from one class to the next
};

template <typename T>
struct CrossEntropyRows {
  const T* logits;
  T* gradient;  // null: not wanted; may be the logits
  Strides logit_strides, gradient_strides;
  int64_t origin;  // number of the row that the pointers point to
};

}  // namespace adapruner::cuda
