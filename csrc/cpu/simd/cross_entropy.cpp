// Cross entropy of rows, by their length. A short row stays in registers from its maximum to its
// gradient. A long row is read from memory once, in blocks, with a running maximum. The
// exponentials are stored as they are computed. They are rescaled to the final maximum when the
// gradient is written.
#include "cross_entropy.h"

#include <cmath>
#include <limits>

#include "../../math/cross_entropy.h"
#include "lanes.h"
#include "scratch.h"

namespace adapruner::ADAPRUNER_ISA {
namespace {

constexpr int64_t kBlock = 512;       // values of a long row between two updates of its maximum
constexpr int64_t kShortVectors = 8;  // most vectors of a short row

// Calls f(vector, place, size) over [begin, end). The last vector may be partial. Its other lanes
// are `none`.
template <typename T, typename F>
inline void each_vector(const T* x, int64_t begin, int64_t end, float none, const F& f) {
  int64_t j = begin;
  for (; j + kWidth <= end; j += kWidth) f(load(x + j), j, int64_t{kWidth});
  if (j < end) f(load_part(x + j, end - j, none), j, end - j);
}

// Σ_c factor·w_c·(x_c − reference), summed in blocks. The reference is a number of type T.
template <typename T>
double weighted_differences(const T* x, float reference, float factor, const float* weight,
                            int64_t n) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    Floats part{};
    each_vector(x, begin, end, reference, [&](Floats values, int64_t at, int64_t size) {
      const Floats difference = (values - reference) * factor;
      part += weight == nullptr ? difference : difference * load_some(weight + at, size, 0);
    });
    total += sum(part);
  }
  return total;
}

inline double weighted_differences(const double* x, double reference, double factor,
                                   const double* weight, int64_t n) {
  double total = 0;
  for (int64_t j = 0; j < n; ++j) {
    total += (weight == nullptr ? 1 : weight[j]) * (factor * (x[j] - reference));
  }
  return total;
}

template <typename T>
struct Row {
  using A = Acc<T>;
  const CrossEntropyRows<T>& rows;
  const T* logits;
  T* gradient;  // or null
  int64_t target;
  A scale;
  RowTerms<A> terms;
  A target_logit;
  A weighted;  // see row_loss; taken before a gradient overwrites the logits

  // plain: the terms of a row without class weights.
  Row(const CrossEntropyRows<T>& all, int64_t i, const RowTerms<A>& plain)
      : rows(all),
        logits(all.logits + i * all.classes),
        gradient(all.gradient == nullptr ? nullptr : all.gradient + i * all.classes),
        target(all.targets[i]),
        scale(all.row_scale[i]),
        terms(all.class_weight == nullptr ? plain : terms_of(all, all.class_weight[target])),
        target_logit(static_cast<A>(logits[target])),
        weighted(0) {
    if (terms.smooth_weight == 0) return;
    // If x_y is infinite, the loss is not finite for any reference.
    const A reference = std::isfinite(target_logit) ? target_logit : A(0);
    weighted = static_cast<A>(weighted_differences(logits, reference, terms.smooth_weight,
                                                   rows.class_weight, rows.classes));
  }

  static RowTerms<A> terms_of(const CrossEntropyRows<T>& all, A target_class_weight) {
    return row_terms<A>(target_class_weight, all.total_weight, all.smoothing, all.classes);
  }

  // Loss from Σ_c exp(x_c − shift).
  A loss(A shift, A sum) const {
    return row_loss(terms, std::log(sum) - (target_logit - shift), weighted);
  }
  // The gradient is e·factor, minus the terms of smoothing and of the target. e are the
  // exponentials.
  A factor(A sum) const { return scale * softmax_weight(terms) / sum; }

  A class_weight(int64_t j) const {
    return rows.class_weight == nullptr ? A(1) : rows.class_weight[j];
  }
  A smoothing() const { return scale * terms.smooth_weight; }

  // Subtracts the smoothing term from `size` values e·factor of the gradient, from class `at` on.
  Floats less_smoothing(Floats g, int64_t at, int64_t size) const {
    if (terms.smooth_weight == 0) return g;
    const float smooth = smoothing();
    if (rows.class_weight == nullptr) return g - smooth;
    return g - smooth * load_some(rows.class_weight + at, size, 0);
  }

  // Writes the gradient of the target, after all other values. Half types round only the final
  // value.
  void set_target_gradient(A shift, A factor) const {
    if constexpr (std::is_same_v<T, A>) {
      gradient[target] -= scale * terms.target_weight;
    } else {
      const A softmax = exp_nonpositive(target_logit - shift) * factor;
      gradient[target] = static_cast<T>(softmax - smoothing() * class_weight(target) -
                                        scale * terms.target_weight);
    }
  }
};

// Cross entropy of a row of kVectors vectors. If `rest` is not 0, the last one has only `rest`
// values.
template <int kVectors, typename T>
inline float short_row(const Row<T>& row, int64_t rest) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  Floats x[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const T* at = row.logits + v * kWidth;
    x[v] = v + 1 < kVectors || rest == 0 ? load(at) : load_part(at, rest, kNone);
  }
  Floats most = x[0];
#pragma GCC unroll 8
  for (int v = 1; v < kVectors; ++v) most = larger(most, x[v]);
  const float shift = largest(most);
  Floats total{};
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    x[v] = exp_nonpositive(x[v] - shift);
    total += x[v];
  }
  const float all = sum(total);
  if (row.gradient != nullptr) {
    const float factor = row.factor(all);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      T* at = row.gradient + v * kWidth;
      if (v + 1 < kVectors || rest == 0) {
        store(at, row.less_smoothing(x[v] * factor, v * kWidth, kWidth));
      } else {
        store_part(at, rest, row.less_smoothing(x[v] * factor, v * kWidth, rest));
      }
    }
    row.set_target_gradient(shift, factor);
  }
  return row.loss(shift, all);
}

template <typename T>
inline float short_row(const Row<T>& row, int vectors, int64_t rest) {
  switch (vectors) {
    case 1:
      return short_row<1>(row, rest);
    case 2:
      return short_row<2>(row, rest);
    case 3:
      return short_row<3>(row, rest);
    case 4:
      return short_row<4>(row, rest);
    case 5:
      return short_row<5>(row, rest);
    case 6:
      return short_row<6>(row, rest);
    case 7:
      return short_row<7>(row, rest);
    default:
      return short_row<8>(row, rest);
  }
}

// e: memory for the exponentials [classes], which may be the logits, or null if no gradient is
// wanted. shifts: [blocks].
template <typename T>
float long_row(const Row<T>& row, float* e, float* shifts) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const int64_t n = row.rows.classes;
  float shift = kNone;
  double all = 0;
  for (int64_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    Floats most0 = spread(kNone), most1 = most0, most2 = most0, most3 = most0;
    int64_t j = begin;
    for (; j + 4 * kWidth <= end; j += 4 * kWidth) {
      most0 = larger(most0, load(row.logits + j));
      most1 = larger(most1, load(row.logits + j + kWidth));
      most2 = larger(most2, load(row.logits + j + 2 * kWidth));
      most3 = larger(most3, load(row.logits + j + 3 * kWidth));
    }
    each_vector(row.logits, j, end, kNone,
                [&](Floats x, int64_t, int64_t) { most0 = larger(most0, x); });
    const float here = largest(larger(larger(most0, most1), larger(most2, most3)));
    if (here > shift) {
      all = all == 0 ? 0 : all * static_cast<double>(exp_nonpositive(shift - here));
      shift = here;
    }
    shifts[block] = shift;
    const float finite_shift = shift == kNone ? 0 : shift;  // only −inf so far: e is 0
    Floats total{};
    each_vector(row.logits, begin, end, kNone, [&](Floats x, int64_t at, int64_t size) {
      const Floats value = exp_nonpositive(x - finite_shift);
      if (e != nullptr) store_some(e + at, size, value);
      total += value;
    });
    all += sum(total);
  }
  if (row.gradient != nullptr) {
    const float factor = row.factor(static_cast<float>(all));
    for (int64_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
      const int64_t end = begin + kBlock < n ? begin + kBlock : n;
      const float here =
          shifts[block] == shift ? factor : factor * exp_nonpositive(shifts[block] - shift);
      int64_t j = begin;
      for (; j + kWidth <= end; j += kWidth) {
        store(row.gradient + j, row.less_smoothing(load(e + j) * here, j, kWidth));
      }
      if (j < end) {
        const Floats part = load_part(e + j, end - j, 0) * here;
        store_part(row.gradient + j, end - j, row.less_smoothing(part, j, end - j));
      }
    }
    row.set_target_gradient(shift, factor);
  }
  return row.loss(shift, static_cast<float>(all));
}

// float64, for checks. Uses exp of the standard library.
inline double plain_row(const Row<double>& row) {
  const int64_t n = row.rows.classes;
  double shift = -std::numeric_limits<double>::infinity(), all = 0;
  for (int64_t j = 0; j < n; ++j) shift = row.logits[j] > shift ? row.logits[j] : shift;
  for (int64_t j = 0; j < n; ++j) all += std::exp(row.logits[j] - shift);
  if (row.gradient != nullptr) {
    const double factor = row.factor(all);
    const double smooth = row.smoothing();
    for (int64_t j = 0; j < n; ++j) {
      row.gradient[j] = std::exp(row.logits[j] - shift) * factor - smooth * row.class_weight(j);
    }
    row.set_target_gradient(shift, factor);
  }
  return row.loss(shift, all);
}

template <typename T>
void rows_of(const CrossEntropyRows<T>& rows, int64_t begin, int64_t end) {
  const int64_t n = rows.classes;
  const bool is_short = n <= kShortVectors * kWidth;
  // Exponentials are stored in the gradient if it is float32, otherwise in memory of their own.
  constexpr bool kDirect = std::is_same_v<T, float>;
  const bool wanted = rows.gradient != nullptr;
  const Scratch<float> exponentials(kDirect || is_short || !wanted ? 0 : n);
  const Scratch<float> shifts(is_short ? 0 : n / kBlock + 1);
  const RowTerms<Acc<T>> plain = Row<T>::terms_of(rows, 1);
  for (int64_t i = begin; i < end; ++i) {
    if (rows.row_scale[i] < 0) {
      rows.row_loss[i] = 0;
      // All bits 0 are +0 in every type.
      if (wanted) std::memset(static_cast<void*>(rows.gradient + i * n), 0, n * sizeof(T));
      continue;
    }
    const Row<T> row(rows, i, plain);
    if constexpr (std::is_same_v<T, double>) {
      rows.row_loss[i] = plain_row(row);
    } else if (is_short) {
      const int vectors = static_cast<int>((n + kWidth - 1) / kWidth);
      rows.row_loss[i] = short_row(row, vectors, n % kWidth);
    } else if constexpr (kDirect) {
      rows.row_loss[i] = long_row(row, row.gradient, shifts.data());
    } else {
      rows.row_loss[i] = long_row(row, wanted ? exponentials.data() : nullptr, shifts.data());
    }
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
