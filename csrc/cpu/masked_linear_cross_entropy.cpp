// Chunks of rows: their logits are made in one scratch, overwritten with their gradient, and taken
// by the two products that need it before the next chunk comes. Chunks follow one another, so that
// sums over rows have a fixed order; threads are those of the products and of the rows of a chunk.
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../checks.h"
#include "batch.h"
#include "cross_entropy_batch.h"
#include "huge_pages.h"

namespace adapruner::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The logits of a chunk take at most so many bytes, or so many rows where these take more: below
// that the products spend their time on reading the weight and its gradient once a chunk.
constexpr int64_t kScratchBytes = int64_t{32} << 20;
constexpr int64_t kLeastRows = 64;

struct Gradients {
  Tensor input, linear_weight, linear_bias;  // [M, H], [C, H], [C]; undefined: not wanted
};

// T: dtype of the products. float for float16 input, because processors without float16 arithmetic
// take many times longer for its products, and because its range loses the gradients of small
// probabilities.
template <typename T>
class LinearCrossEntropy {
 public:
  using A = Acc<T>;

  // input: [M, H] contiguous, M = B·R.
  LinearCrossEntropy(const CrossEntropyBatch& batch, const Tensor& input,
                     const Tensor& linear_weight, const OptionalTensor& linear_bias)
      : batch_(batch), input_(input), weight_(linear_weight.to(kType)), sums_(batch.samples, 0.0) {
    // Else every product of every chunk would copy it.
    if (!weight_.is_contiguous() && !weight_.t().is_contiguous()) weight_ = weight_.contiguous();
    if (linear_bias.has_value()) bias_ = linear_bias->to(kType).contiguous();
    find_rows();
  }

  Losses run(bool input_gradient, bool weight_gradient, bool bias_gradient) {
    const int64_t all = static_cast<int64_t>(targets_.size());
    const int64_t row_bytes = batch_.classes * static_cast<int64_t>(sizeof(T));
    const int64_t most = std::max(kScratchBytes / row_bytes, kLeastRows);
    const int64_t chunks = (all + most - 1) / most;
    const int64_t size = chunks == 0 ? 0 : (all + chunks - 1) / chunks;  // no small one at the end
    allocate(size, input_gradient, weight_gradient, bias_gradient);
    for (int64_t begin = 0; begin < all; begin += size) chunk(begin, std::min(size, all - begin));
    return losses_of<A>(batch_, sums_);
  }

  // After run(), in the dtype of the input.
  Gradients gradients() {
    const auto type = input_.scalar_type();
    if (rounded_.defined()) rounded_.copy_(weight_gradient_);
    return {input_gradient_, rounded_.defined() ? rounded_ : weight_gradient_,
            bias_gradient_.defined() ? bias_gradient_.to(type) : bias_gradient_};
  }

 private:
  static constexpr auto kType = c10::CppTypeToScalarType<T>::value;
  static constexpr auto kSumType = c10::CppTypeToScalarType<A>::value;

  // The rows that are not ignored: all others are left out of everything.
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

  void allocate(int64_t size, bool input_gradient, bool weight_gradient, bool bias_gradient) {
    const auto options = input_.options();
    logits_ = at::empty({size, batch_.classes}, options.dtype(kType));
    advise_huge_pages(logits_);
    row_losses_.resize(size);
    wanted_ = input_gradient || weight_gradient || bias_gradient;
    if (input_gradient) {
      input_gradient_ =
          every_row_ ? at::empty(input_.sizes(), options) : at::zeros(input_.sizes(), options);
    }
    if (weight_gradient) {
      weight_gradient_ = at::empty(weight_.sizes(), options.dtype(kSumType));
      advise_huge_pages(weight_gradient_);
      if (size == 0) weight_gradient_.zero_();
      if (input_.scalar_type() != kSumType) {
        rounded_ = at::empty(weight_.sizes(), options);
        advise_huge_pages(rounded_);
      }
    }
    if (bias_gradient) bias_gradient_ = at::zeros({batch_.classes}, options.dtype(kSumType));
  }

  void chunk(int64_t begin, int64_t n) {
    const Tensor places = row_indices(begin, n);
    const Tensor x =
        (every_row_ ? input_.narrow(0, begin, n) : input_.index_select(0, places)).to(kType);
    Tensor logits = logits_.narrow(0, 0, n);
    if (bias_.defined()) {
      at::addmm_out(logits, bias_, x, weight_.t());
    } else {
      at::mm_out(logits, x, weight_.t());
    }
    T* values = logits.template mutable_data_ptr<T>();
    each_row<T>(batch_, values, targets_.data() + begin, scales_.data() + begin, n, /*columns=*/0,
                row_losses_.data(), wanted_ ? values : nullptr);
    for (int64_t j = 0; j < n; ++j) sums_[samples_[begin + j]] += row_losses_[j];
    // From here on, `logits` holds their gradient.
    if (input_gradient_.defined()) add_input_gradient(logits, begin, n, places);
    if (weight_gradient_.defined()) add_weight_gradient(logits, x, begin == 0);
    if (bias_gradient_.defined()) bias_gradient_.add_(at::sum(logits, 0, false, kSumType));
  }

  // Places in [0, M) of a chunk's rows, int64 [n]; undefined where every row counts.
  Tensor row_indices(int64_t begin, int64_t n) {
    if (every_row_) return {};
    return at::from_blob(rows_.data() + begin, {n}, at::kLong);
  }

  void add_input_gradient(const Tensor& gradient, int64_t begin, int64_t n, const Tensor& places) {
    if (!every_row_) {
      input_gradient_.index_copy_(0, places,
                                  at::mm(gradient, weight_).to(input_gradient_.scalar_type()));
      return;
    }
    Tensor part = input_gradient_.narrow(0, begin, n);
    if (part.scalar_type() == kType) {
      at::mm_out(part, gradient, weight_);
    } else {
      part.copy_(at::mm(gradient, weight_));
    }
  }

  void add_weight_gradient(const Tensor& gradient, const Tensor& x, bool first) {
    const Tensor transposed = gradient.t();
    if constexpr (!std::is_same_v<T, A>) {
      // Each chunk's product is rounded to T, their sum is not.
      at::mm_out(rounded_, transposed, x);
      if (first) {
        weight_gradient_.copy_(rounded_);
      } else {
        weight_gradient_.add_(rounded_);
      }
    } else if (first) {
      at::mm_out(weight_gradient_, transposed, x);
    } else {
      weight_gradient_.addmm_(transposed, x);
    }
  }

  const CrossEntropyBatch& batch_;
  Tensor input_, weight_, bias_;
  std::vector<int64_t> targets_, samples_;  // of the rows that count
  std::vector<int64_t> rows_;               // their places in [0, M)
  bool every_row_ = false;                  // no row is ignored
  std::vector<A> scales_, row_losses_;
  std::vector<double> sums_;  // [B] losses
  Tensor logits_;             // the scratch
  bool wanted_ = false;
  Tensor input_gradient_, weight_gradient_, bias_gradient_;
  Tensor rounded_;  // the gradient of the weight in the dtype of the input, where sums have another
};

template <typename T>
std::pair<Losses, Gradients> compute(const CrossEntropyBatch& batch, const Tensor& input,
                                     const Tensor& linear_weight, const OptionalTensor& linear_bias,
                                     bool input_gradient, bool weight_gradient,
                                     bool bias_gradient) {
  LinearCrossEntropy<T> work(batch, input, linear_weight, linear_bias);
  Losses losses = work.run(input_gradient, weight_gradient, bias_gradient);
  return {std::move(losses), work.gradients()};
}

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
  const bool bias_gradient = compute_bias_gradient && linear_bias.has_value();
  const auto call = [&](auto of) {
    return compute<decltype(of)>(batch, rows, linear_weight, linear_bias, compute_input_gradient,
                                 compute_weight_gradient, bias_gradient);
  };
  auto [losses, gradients] = input.scalar_type() == at::kDouble     ? call(double{})
                             : input.scalar_type() == at::kBFloat16 ? call(c10::BFloat16{})
                                                                    : call(float{});
  const Tensor none = at::empty({0}, input.options());
  return {losses.loss,
          losses.sample_loss,
          losses.pressure,
          compute_input_gradient ? gradients.input.view(input.sizes()) : none,
          compute_weight_gradient ? gradients.linear_weight : at::empty_like(none),
          bias_gradient ? gradients.linear_bias : at::empty_like(none)};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) {
  m.impl("masked_linear_cross_entropy", masked_linear_cross_entropy_cpu);
}

}  // namespace adapruner::cpu
