// The matrix products of masked_linear_cross_entropy, for every device. The logits of a chunk of
// rows are computed in one scratch tensor. Their gradient overwrites them. The two products that
// need the gradient run before the next chunk begins. Chunks run one after another, so that sums
// over rows have a fixed order.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <optional>

namespace adapruner {

class LinearProducts {
 public:
  struct Wanted {
    bool input, weight, bias;
    bool any() const { return input || weight || bias; }
  };

  // input [M, H] contiguous, linear_weight [C, H], linear_bias [C]. Products and gradients have
  // dtype `type`: float32 for float16 input, whose range would lose a gradient before it is
  // multiplied by the upstream one. Sums over rows have dtype `sum_type`. `prepare` is called on
  // large tensors before their first use.
  LinearProducts(const at::Tensor& input, const at::Tensor& linear_weight,
                 const std::optional<at::Tensor>& linear_bias, at::ScalarType type,
                 at::ScalarType sum_type, void (*prepare)(const at::Tensor&))
      : input_(input),
        weight_(linear_weight.to(type)),
        type_(type),
        sum_type_(sum_type),
        prepare_(prepare) {
    // Otherwise every product of every chunk would copy it.
    if (!weight_.is_contiguous() && !weight_.t().is_contiguous()) weight_ = weight_.contiguous();
    if (linear_bias.has_value()) bias_ = linear_bias->to(type).contiguous();
  }

  // Allocates for `chunks` chunks of at most `rows` rows. every_row: the chunks together contain
  // all rows of the input.
  void allocate(int64_t chunks, int64_t rows, Wanted wanted, bool every_row) {
    const auto options = input_.options().dtype(type_);
    logits_ = large({rows, weight_.size(0)}, type_);
    if (wanted.input) {
      input_gradient_ =
          every_row ? at::empty(input_.sizes(), options) : at::zeros(input_.sizes(), options);
    }
    if (wanted.weight) {
      if (type_ != sum_type_) rounded_ = large(weight_.sizes(), type_);
      // A single product needs no sum.
      if (type_ == sum_type_ || chunks > 1) weight_gradient_ = large(weight_.sizes(), sum_type_);
      if (chunks == 0) (weight_gradient_.defined() ? weight_gradient_ : rounded_).zero_();
    }
    if (wanted.bias) bias_gradient_ = at::zeros({weight_.size(0)}, options.dtype(sum_type_));
  }

  // Logits [n, C] of x [n, H], both of dtype `type`, in the scratch tensor.
  at::Tensor logits(const at::Tensor& x) {
    at::Tensor out = logits_.narrow(0, 0, x.size(0));
    if (bias_.defined()) return at::addmm_out(out, bias_, x, weight_.t());
    return at::mm_out(out, x, weight_.t());
  }

  // `gradient` [n, C] is the gradient of the logits of rows [begin, begin + n) of the input.
  void add_input_gradient(const at::Tensor& gradient, int64_t begin) {
    if (!input_gradient_.defined()) return;
    at::Tensor part = input_gradient_.narrow(0, begin, gradient.size(0));
    at::mm_out(part, gradient, weight_);
  }

  // The same for the rows at `places`, int64 [n].
  void add_input_gradient(const at::Tensor& gradient, const at::Tensor& places) {
    if (!input_gradient_.defined()) return;
    input_gradient_.index_copy_(0, places, at::mm(gradient, weight_));
  }

  // x has the rows of the input that the gradient [n, C] belongs to, in dtype `type`.
  void add_weight_gradient(const at::Tensor& gradient, const at::Tensor& x, bool first) {
    if (bias_gradient_.defined()) bias_gradient_.add_(at::sum(gradient, 0, false, sum_type_));
    if (!wants_weight()) return;
    const at::Tensor transposed = gradient.t();
    if (type_ != sum_type_) {
      // The product of each chunk is rounded to `type`. The sum over chunks is not.
      at::mm_out(rounded_, transposed, x);
      if (!weight_gradient_.defined()) return;  // a single chunk: the product is the sum
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

  bool wants_weight() const { return rounded_.defined() || weight_gradient_.defined(); }

  // The gradients after the last chunk. A gradient that is not wanted is empty [0]. The gradient of
  // the input has shape `sizes`.
  at::Tensor input_gradient(at::IntArrayRef sizes) const {
    return input_gradient_.defined() ? input_gradient_.view(sizes) : none();
  }
  at::Tensor weight_gradient() {
    if (rounded_.defined() && weight_gradient_.defined()) rounded_.copy_(weight_gradient_);
    return rounded_.defined() ? rounded_ : weight_gradient_.defined() ? weight_gradient_ : none();
  }
  at::Tensor bias_gradient() const {
    return bias_gradient_.defined() ? bias_gradient_.to(type_) : none();
  }

 private:
  at::Tensor none() const { return at::empty({0}, input_.options().dtype(type_)); }

  at::Tensor large(at::IntArrayRef sizes, at::ScalarType type) const {
    at::Tensor tensor = at::empty(sizes, input_.options().dtype(type));
    prepare_(tensor);
    return tensor;
  }

  at::Tensor input_, weight_, bias_;
  at::ScalarType type_, sum_type_;
  void (*prepare_)(const at::Tensor&);
  at::Tensor logits_;  // the scratch tensor
  at::Tensor input_gradient_, weight_gradient_, bias_gradient_;
  // The product of a chunk, and the gradient of the weight, in `type`, if sums have another dtype.
  at::Tensor rounded_;
};

}  // namespace adapruner
