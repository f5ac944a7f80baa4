// What the kernels of the losses know of a batch: plain data, for host and device.
#pragma once

#include "../math/cross_entropy.h"
#include "integers.h"

namespace adapruner::cuda {

// Found before the rows are read, where a sample has more of them than a block at one time.
struct SampleRows {
  double weight;  // s; negative: the sample takes no part
  double scale;   // factor of the gradient of its rows
  int64_t count;  // rows that count
  unsigned done;  // blocks that have counted some
};

// B samples and what becomes of them. A is the dtype of the losses: float, or double for float64.
struct LossBatch {
  int64_t samples;  // B
  Integers ids;     // [B]
  const float* gate_logits;
  int64_t gates;   // N
  int64_t* state;  // errors are noted there
  // Written.
  void* loss;         // A
  void* sample_loss;  // A [B]
  float* pressure;    // [B]
  // Scratch.
  int64_t units;    // of work, all of which add to the loss
  double* partial;  // [units]
  unsigned* done;   // units that are; 0 before the first. Null where there is but one
};

constexpr int kLossThreads = 256;  // samples of a unit, where losses are given

// With R rows of C classes for each sample.
struct CrossEntropyBatch : LossBatch {
  int64_t rows, classes;  // R, C
  Integers target;        // [B·R]
  int64_t ignore_index;
  const void* class_weight;     // A [C]; null: ones
  const void* total_weight;     // A, their sum; read where there is smoothing
  RowTerms<double> unit_terms;  // of a row whose target has a weight of 1; total_weight apart
  double unit_scale;            // factor of the gradient of a sample of one row whose weight is 1
  SampleRows* sample_rows;      // [B]; scratch of plans that are prepared
};

// Where the logits of a row are and where its gradient goes, in elements.
struct Strides {
  int64_t sample, row, one;  // one: from class to class
};

template <typename T>
struct CrossEntropyRows {
  const T* logits;
  T* gradient;  // null: not wanted; may be the logits
  Strides logit_strides, gradient_strides;
  int64_t origin;  // flat number of the row that the pointers point to
};

}  // namespace adapruner::cuda
