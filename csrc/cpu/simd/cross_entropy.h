// Cross entropy of many rows of logits. Loss and gradient of a row are computed together. Either
// the classes of a row lie side by side in memory, or the rows of a sample do, class after class.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "dispatch.h"

namespace adapruner {

// T: float, double, c10::BFloat16 or c10::Half. Arithmetic is in Acc<T>: double for double,
// otherwise float.
template <typename T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct CrossEntropyRows {
  const T* logits;             // [rows, classes], or [samples, classes, columns]; contiguous
  const int64_t* targets;      // [rows], in [0, classes) where row_scale is not negative
  const Acc<T>* row_scale;     // [rows]: factor of the row's gradient; negative: row ignored
  const Acc<T>* class_weight;  // [classes], or null for ones
  Acc<T> total_weight;         // sum of the class weights
  double smoothing;
  int64_t classes;
  int64_t columns;   // rows of a sample, for cross_entropy_columns
  Acc<T>* row_loss;  // [rows], written; 0 where the row is ignored
  T* gradient;       // like logits, written; may be `logits`; null: not wanted
};

// Number of columns that are processed together. Their exponentials fit a core's own cache.
inline int64_t strip_columns(int64_t classes) {
  constexpr int64_t kMost = 256, kLeast = 16, kValues = 32768;
  const int64_t fit = kValues / classes / kLeast * kLeast;
  return fit < kLeast ? kLeast : fit < kMost ? fit : kMost;
}
inline int64_t strips_of_sample(int64_t classes, int64_t columns) {
  const int64_t width = strip_columns(classes);
  return (columns + width - 1) / width;
}

#define ADAPRUNER_DECLARE(isa)                                                                    \
  namespace isa {                                                                                 \
  void cross_entropy_rows(const CrossEntropyRows<float>&, int64_t begin, int64_t end);            \
  void cross_entropy_rows(const CrossEntropyRows<double>&, int64_t begin, int64_t end);           \
  void cross_entropy_rows(const CrossEntropyRows<c10::BFloat16>&, int64_t begin, int64_t end);    \
  void cross_entropy_rows(const CrossEntropyRows<c10::Half>&, int64_t begin, int64_t end);        \
  /* begin … end: strips, those of the first sample first */                                      \
  void cross_entropy_columns(const CrossEntropyRows<float>&, int64_t begin, int64_t end);         \
  void cross_entropy_columns(const CrossEntropyRows<c10::BFloat16>&, int64_t begin, int64_t end); \
  void cross_entropy_columns(const CrossEntropyRows<c10::Half>&, int64_t begin, int64_t end);     \
  }
ADAPRUNER_FOR_EACH_ISA(ADAPRUNER_DECLARE)
#undef ADAPRUNER_DECLARE

}  // namespace adapruner
