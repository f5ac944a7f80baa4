// Autograd of the operators. The forward pass computes the gradients. The backward pass multiplies
// them by the upstream gradient. Gates are not part of the graph. Operators return an alias of a
// gradient that the graph holds, so that the backward pass can tell whether anyone else holds its
// memory.
#include <ATen/SavedTensorHooks.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/div.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "math/cross_entropy.h"

namespace adapruner {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

template <typename Signature>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

using MaskedLinearCrossEntropySignature =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                               const OptionalTensor&, const Tensor&,
                                                               const Tensor&, const Tensor&,
                                                               const Tensor&, const OptionalTensor&,
                                                               int64_t, double, bool, bool, bool);

void refuse_second_derivative() {
  TORCH_CHECK(
      !at::GradMode::is_enabled(),
      "the masked cross entropy has no second derivative, because it computes its gradient in the "
      "forward pass; found create_graph=True. Use masked_loss over "
      "torch.nn.functional.cross_entropy(..., reduction=\"none\")");
}

// False for a tensor that is traced or wrapped by torch.compile, a tensor subclass or vmap.
bool is_plain(const Tensor& tensor) {
  constexpr c10::DispatchKeySet kWrapped(
      {c10::DispatchKey::Python, c10::DispatchKey::Functionalize, c10::DispatchKey::Batched,
       c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  return !tensor.key_set().has_any(kWrapped);
}

// True if the upstream gradient is known to be 1. The value of a tensor on a GPU is not known here.
bool is_plain_one(const Tensor& upstream) {
  return upstream.is_cpu() && is_plain(upstream) && upstream.item<double>() == 1.0;
}

// A gradient that the graph holds, times a factor. The result overwrites the gradient if this
// backward pass is the last to need it and no tensor of the caller or of a hook shares its memory.
Tensor scaled(const Tensor& held, const Tensor& factor) {
  static auto scale =
      find_operator<Tensor(const Tensor&, const Tensor&)>("adapruner::scale_gradient");
  static auto scale_ = find_operator<void(Tensor&, const Tensor&)>("adapruner::scale_gradient_");
  if (is_plain_one(factor)) return held;
  const bool is_last = !torch::autograd::get_current_graph_task_keep_graph() && is_plain(held) &&
                       is_plain(factor) && held.storage().use_count() == 1;
  if (!is_last) return scale.call(held, factor);
  Tensor gradient = held;
  scale_.call(gradient, factor);
  return gradient;
}

// Arguments of the cross entropy operators other than the logits. autograd::Function receives them
// as one object and returns results other than the loss through a reference. Its bookkeeping for
// tensors without a gradient costs as much as a small batch.
struct CrossEntropyArguments {
  const Tensor& target;
  const Tensor& ids;
  const Tensor& gate_logits;
  const Tensor& state;
  const OptionalTensor& weight;
  int64_t ignore_index;
  double label_smoothing;
};

// With hooks, a saved tensor may be computed a second time: activation checkpointing runs the
// forward pass again. The gates have been updated by then. So the weights of the first call are
// kept in saved_data, which hooks do not see.
bool hooks_are_active() { return at::SavedTensorDefaultHooks::get_hooks().has_value(); }

// Saves a gradient [B, C, ...]. With hooks it also saves the weights s_i/B of the gradient.
void save_gradient(AutogradContext* ctx, const Tensor& gradient, const Tensor& sample_loss,
                   const CrossEntropyArguments& with) {
  if (!hooks_are_active()) return ctx->save_for_backward({gradient});
  at::AutoDispatchBelowADInplaceOrView guard;
  static auto op = find_operator<std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&)>("adapruner::masked_loss");
  const Tensor weights =
      std::get<2>(op.call(at::zeros_like(sample_loss), with.ids, with.gate_logits, with.state));
  ctx->saved_data["weights"] = weights;
  ctx->save_for_backward({gradient, weights});
}

// The saved gradient, with the weights of the first call.
Tensor saved_gradient(AutogradContext* ctx) {
  const variable_list saved = ctx->get_saved_variables();
  if (saved.size() == 1) return saved[0];
  const Tensor before = ctx->saved_data["weights"].toTensor(), now = saved[1];
  std::vector<int64_t> per_sample(saved[0].dim(), 1);
  per_sample[0] = -1;
  const Tensor ratio = at::where(at::eq(now, 0), now, at::div(before, now)).view(per_sample);
  return at::mul(saved[0], ratio).to(saved[0].scalar_type());
}

// The factor for the stored gradient [B, C, ...].
Tensor factor_of(const Tensor& gradient, const Tensor& upstream) {
  return gradient.scalar_type() == at::kHalf ? at::div(upstream, kHalfGradientScale) : upstream;
}

// Also with a gradient of forward mode, which autograd refuses, as it does for the other operators.
bool needs_gradient(const Tensor& logits) {
  return (at::GradMode::is_enabled() && logits.requires_grad()) || logits._fw_grad(0).defined();
}

// Calls the same operator below autograd. Returns loss, sample_loss, pressure and gradient.
using CrossEntropyResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;
CrossEntropyResults cross_entropy_below(const Tensor& logits, const CrossEntropyArguments& with,
                                        bool compute_gradient) {
  at::AutoDispatchBelowADInplaceOrView guard;
  static auto op = find_operator<CrossEntropyResults(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
      const OptionalTensor&, int64_t, double, bool)>("adapruner::masked_cross_entropy");
  return op.call(logits, with.target, with.ids, with.gate_logits, with.state, with.weight,
                 with.ignore_index, with.label_smoothing, compute_gradient);
}

using CrossEntropyInPlaceResults = std::tuple<Tensor, Tensor, Tensor>;
CrossEntropyInPlaceResults cross_entropy_below_(Tensor& logits, const CrossEntropyArguments& with) {
  at::AutoDispatchBelowADInplaceOrView guard;
  static auto op = find_operator<CrossEntropyInPlaceResults(
      Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
      int64_t, double)>("adapruner::masked_cross_entropy_");
  return op.call(logits, with.target, with.ids, with.gate_logits, with.state, with.weight,
                 with.ignore_index, with.label_smoothing);
}

class MaskedCrossEntropy : public torch::autograd::Function<MaskedCrossEntropy> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& logits,
                        const CrossEntropyArguments& with, bool compute_gradient,
                        CrossEntropyResults& results) {
    results = cross_entropy_below(logits, with, compute_gradient);
    auto& [loss, sample_loss, pressure, gradient] = results;
    if (compute_gradient) {
      save_gradient(ctx, gradient, sample_loss, with);
      gradient = gradient.variable_data();
    } else {
      ctx->saved_data["nothing"] = true;
    }
    ctx->set_materialize_grads(false);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    variable_list gradients(4);  // one for each argument of forward
    if (!upstream[0].defined()) return gradients;
    refuse_second_derivative();
    TORCH_CHECK(ctx->saved_data.count("nothing") == 0,
                "masked_cross_entropy must be called with compute_gradient=True to be "
                "differentiated; found compute_gradient=False");
    const Tensor gradient = saved_gradient(ctx);
    gradients[0] = scaled(gradient, factor_of(gradient, upstream[0]));
    return gradients;
  }
};

class MaskedCrossEntropyInPlace : public torch::autograd::Function<MaskedCrossEntropyInPlace> {
 public:
  static Tensor forward(AutogradContext* ctx, Tensor logits, const CrossEntropyArguments& with,
                        CrossEntropyInPlaceResults& results) {
    results = cross_entropy_below_(logits, with);
    const auto& [loss, sample_loss, pressure] = results;
    // The logits are overwritten. An earlier operation that saved them must see this.
    torch::autograd::impl::bump_version(logits);
    save_gradient(ctx, logits.detach(), sample_loss, with);
    ctx->set_materialize_grads(false);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    variable_list gradients(3);
    if (!upstream[0].defined()) return gradients;
    refuse_second_derivative();
    TORCH_CHECK(ctx->saved_data.count("used") == 0,
                "the backward pass of a loss that has overwritten its logits can run once; found a "
                "second backward pass. Leave out overwrite_logits=True to keep the graph");
    ctx->saved_data["used"] = true;
    static auto scale = find_operator<void(Tensor&, const Tensor&)>("adapruner::scale_gradient_");
    gradients[0] = saved_gradient(ctx);
    scale.call(gradients[0], factor_of(gradients[0], upstream[0]));
    return gradients;
  }
};

class MaskedLinearCrossEntropy : public torch::autograd::Function<MaskedLinearCrossEntropy> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& input,
                               const Tensor& linear_weight, const OptionalTensor& linear_bias,
                               const Tensor& target, const Tensor& ids, const Tensor& gate_logits,
                               const Tensor& state, const OptionalTensor& weight,
                               int64_t ignore_index, double label_smoothing, bool of_input,
                               bool of_weight, bool of_bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static auto op =
        find_operator<MaskedLinearCrossEntropySignature>("adapruner::masked_linear_cross_entropy");
    auto [loss, sample_loss, pressure, input_gradient, weight_gradient, bias_gradient] =
        op.call(input, linear_weight, linear_bias, target, ids, gate_logits, state, weight,
                ignore_index, label_smoothing, of_input, of_weight, of_bias);
    ctx->saved_data["computed"] = std::vector<bool>{of_input, of_weight, of_bias};
    ctx->saved_data["inputs"] = linear_bias.has_value() ? 3 : 2;
    ctx->saved_data["type"] = input.scalar_type();
    const variable_list gradients{input_gradient, weight_gradient, bias_gradient};
    // These gradients are sums over samples, so new weights cannot be applied later. Hooks do not
    // see them.
    if (hooks_are_active()) {
      ctx->saved_data["gradients"] = gradients;
    } else {
      ctx->save_for_backward(gradients);
    }
    for (Tensor* gradient : {&input_gradient, &weight_gradient, &bias_gradient}) {
      *gradient = gradient->variable_data();
    }
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable(
        {sample_loss, pressure, input_gradient, weight_gradient, bias_gradient});
    return {loss, sample_loss, pressure, input_gradient, weight_gradient, bias_gradient};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    variable_list gradients(13);
    if (!upstream[0].defined()) return gradients;
    refuse_second_derivative();
    const auto computed = ctx->saved_data["computed"].toBoolList();
    const auto type = ctx->saved_data["type"].toScalarType();
    const auto kept = ctx->saved_data.find("gradients");
    const variable_list saved =
        kept == ctx->saved_data.end() ? ctx->get_saved_variables() : kept->second.toTensorVector();
    // Autograd does not free these tensors as it frees saved variables. They can be overwritten
    // from here on.
    const bool is_last = !torch::autograd::get_current_graph_task_keep_graph();
    if (kept != ctx->saved_data.end() && is_last) ctx->saved_data.erase(kept);
    for (int64_t i = 0; i < ctx->saved_data["inputs"].toInt(); ++i) {
      if (!ctx->needs_input_grad(i)) continue;
      TORCH_CHECK(computed.get(i),
                  "masked_linear_cross_entropy must be called with "
                  "compute_{input,weight,bias}_gradient=True for a tensor that needs a gradient; "
                  "found False");
      gradients[i] = scaled(saved[i], upstream[0]).to(type);
    }
    return gradients;
  }
};

class MaskedLoss : public torch::autograd::Function<MaskedLoss> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& sample_loss, const Tensor& ids,
                               const Tensor& gate_logits, const Tensor& state) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static auto op = find_operator<std::tuple<Tensor, Tensor, Tensor>(
        const Tensor&, const Tensor&, const Tensor&, const Tensor&)>("adapruner::masked_loss");
    auto [loss, pressure, gradient] = op.call(sample_loss, ids, gate_logits, state);
    if (hooks_are_active()) {
      ctx->saved_data["gradient"] = gradient;
    } else {
      ctx->save_for_backward({gradient});
    }
    ctx->saved_data["type"] = sample_loss.scalar_type();
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable({pressure, gradient});
    return {loss, pressure, gradient};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    if (!upstream[0].defined()) return variable_list(4);
    const auto kept = ctx->saved_data.find("gradient");
    const Tensor gradient =
        kept == ctx->saved_data.end() ? ctx->get_saved_variables()[0] : kept->second.toTensor();
    // The loss is linear in the sample losses, so this product is all that a second derivative
    // needs.
    return {at::mul(gradient, upstream[0]).to(ctx->saved_data["type"].toScalarType()), Tensor(),
            Tensor(), Tensor()};
  }
};

CrossEntropyResults masked_cross_entropy_autograd(const Tensor& logits, const Tensor& target,
                                                  const Tensor& ids, const Tensor& gate_logits,
                                                  const Tensor& state, const OptionalTensor& weight,
                                                  int64_t ignore_index, double label_smoothing,
                                                  bool compute_gradient) {
  const CrossEntropyArguments with{target, ids,          gate_logits,    state,
                                   weight, ignore_index, label_smoothing};
  if (!needs_gradient(logits)) return cross_entropy_below(logits, with, compute_gradient);
  CrossEntropyResults results;
  std::get<0>(results) = MaskedCrossEntropy::apply(logits, with, compute_gradient, results);
  return results;
}

CrossEntropyInPlaceResults masked_cross_entropy__autograd(
    Tensor& logits, const Tensor& target, const Tensor& ids, const Tensor& gate_logits,
    const Tensor& state, const OptionalTensor& weight, int64_t ignore_index,
    double label_smoothing) {
  const CrossEntropyArguments with{target, ids,          gate_logits,    state,
                                   weight, ignore_index, label_smoothing};
  if (!needs_gradient(logits)) {
    CrossEntropyInPlaceResults results = cross_entropy_below_(logits, with);
    torch::autograd::impl::bump_version(logits);
    return results;
  }
  TORCH_CHECK(!logits.is_leaf() &&
                  !(logits.is_view() && logits._base().is_leaf() && logits._base().requires_grad()),
              "the logits of masked_cross_entropy_ must not be a leaf that requires grad, nor a "
              "view of one, because they are overwritten; found a leaf or a view of one");
  CrossEntropyInPlaceResults results;
  std::get<0>(results) = MaskedCrossEntropyInPlace::apply(logits, with, results);
  return results;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_linear_cross_entropy_autograd(
    const Tensor& input, const Tensor& linear_weight, const OptionalTensor& linear_bias,
    const Tensor& target, const Tensor& ids, const Tensor& gate_logits, const Tensor& state,
    const OptionalTensor& weight, int64_t ignore_index, double label_smoothing, bool of_input,
    bool of_weight, bool of_bias) {
  auto out = MaskedLinearCrossEntropy::apply(input, linear_weight, linear_bias, target, ids,
                                             gate_logits, state, weight, ignore_index,
                                             label_smoothing, of_input, of_weight, of_bias);
  return {out[0], out[1], out[2], out[3], out[4], out[5]};
}

// With autocast the products are in the autocast dtype, as those of torch.nn.functional.linear are.
// The casts are below this operator and are part of the graph.
template <at::DeviceType kDevice>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_linear_cross_entropy_autocast(
    const Tensor& input, const Tensor& linear_weight, const OptionalTensor& linear_bias,
    const Tensor& target, const Tensor& ids, const Tensor& gate_logits, const Tensor& state,
    const OptionalTensor& weight, int64_t ignore_index, double label_smoothing, bool of_input,
    bool of_weight, bool of_bias) {
  const c10::impl::ExcludeDispatchKeyGuard guard(
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  static auto op =
      find_operator<MaskedLinearCrossEntropySignature>("adapruner::masked_linear_cross_entropy");
  const auto type = at::autocast::get_autocast_dtype(kDevice);
  const auto cast = [&](const Tensor& tensor) {
    return at::autocast::cached_cast(type, tensor, kDevice);
  };
  return op.call(cast(input), cast(linear_weight),
                 linear_bias.has_value() ? OptionalTensor(cast(*linear_bias)) : linear_bias, target,
                 ids, gate_logits, state, weight, ignore_index, label_smoothing, of_input,
                 of_weight, of_bias);
}

std::tuple<Tensor, Tensor, Tensor> masked_loss_autograd(const Tensor& sample_loss,
                                                        const Tensor& ids,
                                                        const Tensor& gate_logits,
                                                        const Tensor& state) {
  auto out = MaskedLoss::apply(sample_loss, ids, gate_logits, state);
  return {out[0], out[1], out[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, Autograd, m) {
  m.impl("masked_cross_entropy", masked_cross_entropy_autograd);
  m.impl("masked_cross_entropy_", masked_cross_entropy__autograd);
  m.impl("masked_linear_cross_entropy", masked_linear_cross_entropy_autograd);
  m.impl("masked_loss", masked_loss_autograd);
}

TORCH_LIBRARY_IMPL(adapruner, AutocastCPU, m) {
  m.impl("masked_linear_cross_entropy", masked_linear_cross_entropy_autocast<at::kCPU>);
}

TORCH_LIBRARY_IMPL(adapruner, AutocastCUDA, m) {
  m.impl("masked_linear_cross_entropy", masked_linear_cross_entropy_autocast<at::kCUDA>);
}

}  // namespace adapruner
