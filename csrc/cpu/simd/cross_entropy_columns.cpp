// Rows that lie side by side in memory, class after class, as in the output of a convolution. A
// lane of a vector is a row. A strip of columns is read class by class three times: for its maxima,
// for its exponentials, which stay in a core's own cache, and for its gradient.
#include <cmath>
#include <cstring>
#include <limits>

#include "../../math/cross_entropy.h"
#include "cross_entropy.h"
#include "lanes.h"
#include "scratch.h"

namespace adapruner::ADAPRUNER_ISA {
namespace {

constexpr int64_t kClasses = 64;  // classes that are summed before they are added to the total

// Arrays with a number for each column of a strip. The width is a whole number of vectors.
struct Strip {
  int64_t width;
  Scratch<float> memory;
  float *shift, *sum, *part, *target, *reference, *weighted, *factor, *smoothing, *kept;
  float* exponentials;  // [classes, width]

  explicit Strip(int64_t classes) : width(strip_columns(classes)), memory((9 + classes) * width) {
    float* next = memory.data();
    for (float** array : {&shift, &sum, &part, &target, &reference, &weighted, &factor, &smoothing,
                          &kept, &exponentials}) {
      *array = next;
      next += width;
    }
  }
};

// Columns [first, first + n) of a sample.
template <typename T>
struct Columns {
  const CrossEntropyRows<T>& rows;
  const Strip& strip;
  int64_t sample, first, n;

  int64_t row(int64_t j) const { return sample * rows.columns + first + j; }
  int64_t place(int64_t c) const { return (sample * rows.classes + c) * rows.columns + first; }
  const T* logits(int64_t c) const { return rows.logits + place(c); }
  float class_weight(int64_t c) const {
    return rows.class_weight == nullptr ? 1.0f : rows.class_weight[c];
  }

  // Calls f(place of a vector, its size).
  template <typename F>
  void each_vector(const F& f) const {
    int64_t j = 0;
    for (; j + kWidth <= n; j += kWidth) f(j, int64_t{kWidth});
    if (j < n) f(j, n - j);
  }

  // total ← the sum of f(class, place, size) over the classes.
  template <typename F>
  void sum_classes(float* total, const F& f) const {
    std::memset(total, 0, strip.width * sizeof(float));
    for (int64_t begin = 0; begin < rows.classes; begin += kClasses) {
      const int64_t end = begin + kClasses < rows.classes ? begin + kClasses : rows.classes;
      std::memset(strip.part, 0, strip.width * sizeof(float));
      for (int64_t c = begin; c < end; ++c) {
        each_vector([&](int64_t j, int64_t size) {
          store(strip.part + j, load(strip.part + j) + f(c, j, size));
        });
      }
      each_vector(
          [&](int64_t j, int64_t) { store(total + j, load(total + j) + load(strip.part + j)); });
    }
  }

  void find_maxima() const {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    each_vector([&](int64_t j, int64_t) { store(strip.shift + j, spread(kNone)); });
    for (int64_t c = 0; c < rows.classes; ++c) {
      const T* x = logits(c);
      each_vector([&](int64_t j, int64_t size) {
        store(strip.shift + j, larger(load_some(x + j, size, kNone), load(strip.shift + j)));
      });
    }
  }

  void take_exponentials() const {
    sum_classes(strip.sum, [&](int64_t c, int64_t j, int64_t size) {
      const Floats e = exp_nonpositive(load_some(logits(c) + j, size, 0) - load(strip.shift + j));
      store(strip.exponentials + c * strip.width + j, e);
      return e;
    });
  }

  void note_targets() const {
    for (int64_t j = 0; j < n; ++j) {
      const bool kept = !(rows.row_scale[row(j)] < 0);  // NaN is no mark of an ignored row
      const int32_t bits = kept ? -1 : 0;
      std::memcpy(strip.kept + j, &bits, sizeof bits);
      const float x = kept ? static_cast<float>(logits(rows.targets[row(j)])[j]) : 0;
      strip.target[j] = x;
      // If x_y is infinite, the loss is not finite for any reference.
      strip.reference[j] = std::isfinite(x) ? x : 0;
      strip.weighted[j] = 0;
    }
  }

  // Σ_c (α/C)·w_c·(x_c − x_y).
  void sum_differences() const {
    const float smooth =
        row_terms<float>(1, rows.total_weight, rows.smoothing, rows.classes).smooth_weight;
    sum_classes(strip.weighted, [&](int64_t c, int64_t j, int64_t size) {
      const Floats x = load_some(logits(c) + j, size, 0);
      return (x - load(strip.reference + j)) * smooth * class_weight(c);
    });
  }

  void take_losses() const {
    for (int64_t j = 0; j < n; ++j) {
      const float scale = rows.row_scale[row(j)], all = strip.sum[j];
      if (scale < 0) {
        rows.row_loss[row(j)] = 0;
        continue;
      }
      const RowTerms<float> terms = row_terms<float>(
          class_weight(rows.targets[row(j)]), rows.total_weight, rows.smoothing, rows.classes);
      rows.row_loss[row(j)] =
          row_loss(terms, std::log(all) - (strip.target[j] - strip.shift[j]), strip.weighted[j]);
      strip.factor[j] = scale * softmax_weight(terms) / all;
      strip.smoothing[j] = scale * terms.smooth_weight;
      strip.target[j] = scale * terms.target_weight;  // from here on: target term of the gradient
    }
  }

  void write_gradient() const {
    for (int64_t c = 0; c < rows.classes; ++c) {
      T* gradient = rows.gradient + place(c);
      const float* e = strip.exponentials + c * strip.width;
      const float weight = class_weight(c);
      each_vector([&](int64_t j, int64_t size) {
        Floats g = load(e + j) * load(strip.factor + j);
        if (rows.smoothing != 0) g -= load(strip.smoothing + j) * weight;
        store_some(gradient + j, size, (Floats)((Ints)g & (Ints)load(strip.kept + j)));
      });
    }
    for (int64_t j = 0; j < n; ++j) {
      if (rows.row_scale[row(j)] < 0) continue;
      const int64_t c = rows.targets[row(j)];
      // Computed from its parts, so that half types round only the final value.
      float g = strip.exponentials[c * strip.width + j] * strip.factor[j];
      if (rows.smoothing != 0) g -= strip.smoothing[j] * class_weight(c);
      rows.gradient[place(c) + j] = static_cast<T>(g - strip.target[j]);
    }
  }

  void run() const {
    find_maxima();
    take_exponentials();
    note_targets();
    if (rows.smoothing != 0) sum_differences();
    take_losses();
    if (rows.gradient != nullptr) write_gradient();
  }
};

template <typename T>
void columns_of(const CrossEntropyRows<T>& rows, int64_t begin, int64_t end) {
  const Strip strip(rows.classes);
  const int64_t each = strips_of_sample(rows.classes, rows.columns);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i % each * strip.width;
    const int64_t left = rows.columns - first;
    Columns<T>{rows, strip, i / each, first, left < strip.width ? left : strip.width}.run();
  }
}

}  // namespace

void cross_entropy_columns(const CrossEntropyRows<float>& rows, int64_t begin, int64_t end) {
  columns_of(rows, begin, end);
}
void cross_entropy_columns(const CrossEntropyRows<c10::BFloat16>& rows, int64_t begin,
                           int64_t end) {
  columns_of(rows, begin, end);
}
void cross_entropy_columns(const CrossEntropyRows<c10::Half>& rows, int64_t begin, int64_t end) {
  columns_of(rows, begin, end);
}

}  // namespace adapruner::ADAPRUNER_ISA
