#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "../linear_chunks.h"
#include "../linear_products.h"
#include "batch.h"
#include "cross_entropy_batch.h"
#include "huge_pages.h"

namespace adapruner::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The logits of a chunk take at most kScratchBytes, or have kLeastRows rows if these take more.
// With smaller chunks the products would spend their time on reading the weight and its gradient
// for each chunk.
constexpr int64_t kScratchBytes = int64_t{32} << 20;
constexpr int64_t kLeastRows = 64;

// The loss over chunks of the rows that are not ignored. Ignored rows are left out of everything.
// Threads run inside the products and over the rows of a chunk. T is the dtype of the products. It
// is float for float16 input: processors without float16 arithmetic take many times longer for
// float16 products, and float16 rounds the gradients of small probabilities to 0.
template <typename T>
class LinearCrossEntropy {
 public:
  using A = Acc<T>;

  // input: [M, H] contiguous, M = B·R.
  LinearCrossEntropy(const CrossEntropyBatch& batch, const Tensor& input, LinearProducts& products)
      : batch_(batch), input_(input), products_(products), sums_(batch.samples, 0.0) {
    find_rows();
  }

  Losses run(LinearProducts::Wanted wanted) {
    const int64_t all = static_cast<int64_t>(targets_.size());
    const int64_t size = chunk_rows(all, batch_.classes * static_cast<int64_t>(sizeof(T)),
                                    kScratchBytes, kLeastRows);
    products_.allocate(size == 0 ? 0 : (all + size - 1) / size, size, wanted, every_row_);
    row_losses_.resize(size);
    for (int64_t begin = 0; begin < all; begin += size) {
      chunk(begin, std::min(size, all - begin), wanted.any());
    }
    return losses_of<A>(batch_, sums_);
  }

 private:
  void find_rows() {
    const int64_t* target = batch_.target.template const_data_ptr<int64_t>();
    const int64_t all = batch_.samples * batch_.rows;
    for (int64_t b = 0; b < batch_.samples; ++b) {
      for (int64_t i = b * batch_.rows; i < (b + 1) * batch_.rows; ++i) {
        if (target[i] == batch_.ignore_index) continue;
        targets_.push_back(target[i]);
        samples_.push_back(b);
        scales_.push_back(static_cast<A>(batch_.row_scale(b)));
        rows_.push_back(i);
      }
    }
    every_row_ = static_cast<int64_t>(rows_.size()) == all;
  }

  void chunk(int64_t begin, int64_t n, bool wanted) {
    // Places of the rows in [0, M). Undefined if no row is ignored.
    const Tensor places =
        every_row_ ? Tensor() : at::from_blob(rows_.data() + begin, {n}, at::kLong);
    const Tensor x = (every_row_ ? input_.narrow(0, begin, n) : input_.index_select(0, places))
                         .to(c10::CppTypeToScalarType<T>::value);
    Tensor logits = products_.logits(x);
    T* values = logits.template mutable_data_ptr<T>();
    each_row<T>(batch_, values, targets_.data() + begin, scales_.data() + begin, n, 0,
                row_losses_.data(), wanted ? values : nullptr);
    for (int64_t j = 0; j < n; ++j) sums_[samples_[begin + j]] += row_losses_[j];
    // From here on `logits` holds the gradient.
    if (every_row_) {
      products_.add_input_gradient(logits, begin);
    } else {
      products_.add_input_gradient(logits, places);
    }
    products_.add_weight_gradient(logits, x, begin == 0);
  }

  const CrossEntropyBatch& batch_;
  Tensor input_;
  LinearProducts& products_;
  std::vector<int64_t> targets_, samples_;  // of the rows that are not ignored
  std::vector<int64_t> rows_;               // their places in [0, M)
  bool every_row_ = false;                  // true if no row is ignored
  std::vector<A> scales_, row_losses_;
  std::vector<double> sums_;  // [B]: losses
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_linear_cross_entropy_cpu(
    const Tensor& input, const Tensor& linear_weight, const OptionalTensor& linear_bias,
    const Tensor& target, const Tensor& ids, const Tensor& gate_logits, const Tensor& state,
    const OptionalTensor& weight, int64_t ignore_index, double label_smoothing,
    bool compute_input_gradient, bool compute_weight_gradient, bool compute_bias_gradient) {
  check_linear_cross_entropy(input, linear_weight, linear_bias, target, ids, gate_logits, state,
                             weight, label_smoothing);
  const CrossEntropyBatch batch =
      make_batch(loss_type(input), linear_weight.size(0), target, ids, gate_logits, state, weight,
                 ignore_index, label_smoothing);
  const Tensor rows = input.contiguous().view({target.numel(), input.size(-1)});
  const LinearProducts::Wanted wanted{compute_input_gradient, compute_weight_gradient,
                                      compute_bias_gradient && linear_bias.has_value()};
  const auto type = input.scalar_type() == at::kHalf ? at::kFloat : input.scalar_type();
  LinearProducts products(rows, linear_weight, linear_bias, type, loss_type(input),
                          advise_huge_pages);
  const auto call = [&](auto of) {
    return LinearCrossEntropy<decltype(of)>(batch, rows, products).run(wanted);
  };
  const Losses losses = type == at::kDouble     ? call(double{})
                        : type == at::kBFloat16 ? call(c10::BFloat16{})
                                                : call(float{});
  return {losses.loss,
          losses.sample_loss,
          losses.pressure,
          products.input_gradient(input.sizes()),
          products.weight_gradient(),
          products.bias_gradient()};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) {
  m.impl("masked_linear_cross_entropy", masked_linear_cross_entropy_cpu);
}

}  // namespace adapruner::cpu
