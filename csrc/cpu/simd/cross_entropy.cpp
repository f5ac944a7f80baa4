#include "cross_entropy.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>

#include "../../math/cross_entropy.h"
#include "../../math/exp.h"

namespace adapruner::ADAPRUNER_ISA {
namespace {

// A row of scratch memory. Not std::vector: a template of the standard library that is instantiated
// here could become the whole module's copy, with instructions that not every processor has.
template <typename A>
class Scratch {
 public:
  explicit Scratch(int64_t n) : data_(static_cast<A*>(std::malloc(n * sizeof(A) + 1))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* data() const { return data_; }

 private:
  A* data_;
};

inline float exp_shifted(float x) { return exp_nonpositive(x); }
// std::exp keeps the range below −700 that gradient checks in float64 can reach.
inline double exp_shifted(double x) { return std::exp(x); }

template <typename A>
A maximum(const A* x, int64_t n) {
  A result = -std::numeric_limits<A>::infinity();
#pragma omp simd reduction(max : result)
  for (int64_t j = 0; j < n; ++j) result = x[j] > result ? x[j] : result;
  return result;
}

// Sums over classes are those of blocks, added up in double: a single float would drift by 1e−6 and
// more of itself over a vocabulary.
constexpr int64_t kBlock = 1024;

// Σ w_c·(x_c − shift).
template <typename A>
A weighted_sum(const A* x, A shift, const A* weight, int64_t n) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    A sum = 0;
    if (weight == nullptr) {
#pragma omp simd reduction(+ : sum)
      for (int64_t j = begin; j < end; ++j) sum += x[j] - shift;
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t j = begin; j < end; ++j) sum += weight[j] * (x[j] - shift);
    }
    total += sum;
  }
  return static_cast<A>(total);
}

// e[j] = exp(x[j] − shift), in place where e is x; returns their sum. A NaN in x makes the sum NaN.
template <typename A>
A exponentials(const A* x, A shift, A* e, int64_t n) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = begin; j < end; ++j) {
      const A value = exp_shifted(x[j] - shift);
      e[j] = value;
      sum += value;
    }
    total += sum;
  }
  return static_cast<A>(total);
}

template <typename T>
void gradient_row(const CrossEntropyRows<T>& rows, const RowTerms<Acc<T>>& terms, int64_t target,
                  Acc<T> scale, Acc<T> sum, const Acc<T>* e, T* g) {
  using A = Acc<T>;
  const A factor = scale * softmax_weight(terms) / sum;
  const A smooth = scale * terms.smooth_weight;
  const A at_target = scale * terms.target_weight;
  const A target_exp = e[target];
  if (smooth == 0) {
    for (int64_t j = 0; j < rows.classes; ++j) g[j] = static_cast<T>(e[j] * factor);
    g[target] = static_cast<T>(target_exp * factor - at_target);
    return;
  }
  const A* weight = rows.class_weight;
  const A target_smooth = weight == nullptr ? smooth : smooth * weight[target];
  if (weight == nullptr) {
    for (int64_t j = 0; j < rows.classes; ++j) g[j] = static_cast<T>(e[j] * factor - smooth);
  } else {
    for (int64_t j = 0; j < rows.classes; ++j) {
      g[j] = static_cast<T>(e[j] * factor - smooth * weight[j]);
    }
  }
  g[target] = static_cast<T>(target_exp * factor - target_smooth - at_target);
}

template <typename T>
void rows_of(const CrossEntropyRows<T>& rows, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t n = rows.classes;
  // The exponentials go straight into a gradient of the arithmetic's own type, else here.
  constexpr bool kDirect = std::is_same_v<T, A>;
  const Scratch<A> scratch(kDirect && rows.gradient != nullptr ? 0 : n);
  for (int64_t i = begin; i < end; ++i) {
    const T* logits = rows.logits + i * n;
    T* g = rows.gradient == nullptr ? nullptr : rows.gradient + i * n;
    if (rows.row_scale[i] < 0) {
      rows.row_loss[i] = 0;
      if (g != nullptr) {
        for (int64_t j = 0; j < n; ++j) g[j] = static_cast<T>(0.0f);
      }
      continue;
    }
    const A* x;
    A* e;
    if constexpr (kDirect) {
      x = logits;
      e = g == nullptr ? scratch.data() : g;
    } else {
      for (int64_t j = 0; j < n; ++j) scratch.data()[j] = static_cast<A>(logits[j]);
      x = e = scratch.data();
    }
    const int64_t target = rows.targets[i];
    const A target_logit = x[target];
    const A target_class_weight = rows.class_weight == nullptr ? A(1) : rows.class_weight[target];
    const auto terms = row_terms<A>(target_class_weight, rows.total_weight, rows.smoothing, n);
    const A shift = maximum(x, n);
    const A weighted_logits =
        terms.smooth_weight != 0 ? weighted_sum(x, shift, rows.class_weight, n) : A(0);
    const A sum = exponentials(x, shift, e, n);
    rows.row_loss[i] = row_loss(terms, std::log(sum), target_logit - shift, weighted_logits);
    if (g != nullptr) gradient_row(rows, terms, target, rows.row_scale[i], sum, e, g);
  }
}

}  // namespace

void cross_entropy_rows(const CrossEntropyRows<float>& rows, int64_t begin, int64_t end) {
  rows_of(rows, begin, end);
}
void cross_entropy_rows(const CrossEntropyRows<double>& rows, int64_t begin, int64_t end) {
  rows_of(rows, begin, end);
}
void cross_entropy_rows(const CrossEntropyRows<c10::BFloat16>& rows, int64_t begin, int64_t end) {
  rows_of(rows, begin, end);
}
void cross_entropy_rows(const CrossEntropyRows<c10::Half>& rows, int64_t begin, int64_t end) {
  rows_of(rows, begin, end);
}

}  // namespace adapruner::ADAPRUNER_ISA
