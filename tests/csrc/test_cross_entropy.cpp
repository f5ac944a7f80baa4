// csrc/math/cross_entropy.h against its definition in long double.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "../../csrc/math/cross_entropy.h"
#include "check.h"
#include "numbers.h"

namespace {

using namespace adapruner;

// Loss and gradient of a row by their definitions.
struct Row {
  std::vector<Real> logits, weights;
  size_t target;
  Real smoothing;

  Real log_sum_exp() const {
    const Real most = *std::max_element(logits.begin(), logits.end());
    Real sum = 0;
    for (Real x : logits) sum += std::exp(x - most);
    return most + std::log(sum);
  }
  Real loss() const {
    const Real lse = log_sum_exp();
    Real smooth = 0;
    for (size_t c = 0; c < logits.size(); ++c) smooth += weights[c] * (lse - logits[c]);
    return (1 - smoothing) * weights[target] * (lse - logits[target]) +
           smoothing / logits.size() * smooth;
  }
};

template <typename T>
void check_row(const Row& row, Real tolerance) {
  const auto classes = static_cast<int64_t>(row.logits.size());
  T total = 0, weighted = 0, sum = 0;
  T most = static_cast<T>(*std::max_element(row.logits.begin(), row.logits.end()));
  const T at_target = static_cast<T>(row.logits[row.target]);
  for (size_t c = 0; c < row.logits.size(); ++c) {
    const T w = static_cast<T>(row.weights[c]), x = static_cast<T>(row.logits[c]);
    total += w;
    weighted += w * (static_cast<T>(row.smoothing / classes) * (x - at_target));
    sum += std::exp(x - most);
  }
  const auto terms = row_terms<T>(static_cast<T>(row.weights[row.target]), total,
                                  static_cast<double>(row.smoothing), classes);
  const T loss = row_loss(terms, std::log(sum) - (at_target - most), weighted);
  CHECK(near(loss, row.loss(), tolerance));

  // A·softmax − B sums to 0 over the classes, and A is the sum of B.
  Real labels = (1 - row.smoothing) * row.weights[row.target];
  for (Real w : row.weights) labels += row.smoothing * w / classes;
  CHECK(near(softmax_weight(terms), labels, tolerance));
}

void rows_follow_their_definition() {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> uniform(0, 1);
  for (float reach : {1.0f, 20.0f, 1e4f}) {
    for (int classes : {1, 2, 10, 300}) {
      for (Real smoothing : {0.0L, 0.1L, 1.0L}) {
        Row row{std::vector<Real>(classes), std::vector<Real>(classes), random() % classes,
                smoothing};
        for (Real& x : row.logits) x = reach * (uniform(random) - 0.5f);
        for (Real& w : row.weights) w = uniform(random) + 0.1f;
        row.logits[row.target] -= 1;  // avoids a loss near 0, whose relative error is large
        check_row<double>(row, 1e-12L);
        for (Real& x : row.logits) x = static_cast<float>(x);
        check_row<float>(row, 1e-4L);
      }
    }
  }
}

void a_single_class_has_no_loss() {
  const auto terms = row_terms<float>(1.0f, 1.0f, 0.1, 1);
  CHECK_EQUAL(row_loss(terms, 0.0f, 0.0f), 0.0f);
}

void large_equal_logits_lose_nothing() {
  Row row{std::vector<Real>(1000, 9999.3f), std::vector<Real>(1000, 1), 3, 0};
  check_row<float>(row, 1e-6L);
  row.smoothing = 0.1L;
  check_row<float>(row, 1e-6L);
}

}  // namespace

int main() {
  rows_follow_their_definition();
  a_single_class_has_no_loss();
  large_equal_logits_lose_nothing();
  return check::failures() == 0 ? 0 : 1;
}
