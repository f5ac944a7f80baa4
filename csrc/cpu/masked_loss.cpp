#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include "../checks.h"
#include "../math/gate.h"
#include "batch.h"

namespace adapruner::cpu {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_loss_cpu(const at::Tensor& sample_loss,
                                                               const at::Tensor& ids,
                                                               const at::Tensor& gate_logits,
                                                               const at::Tensor& state) {
  check_masked_loss(sample_loss, ids, gate_logits, state);
  const int64_t samples = sample_loss.size(0);
  const auto accumulate = loss_type(sample_loss);
  const at::Tensor id_tensor = checked_ids(ids, gate_logits.size(0));
  const at::Tensor losses = sample_loss.to(at::kDouble).contiguous();
  const at::Tensor gates = gate_logits.contiguous();
  at::Tensor loss = at::empty({}, sample_loss.options().dtype(accumulate));
  at::Tensor pressures = at::empty({samples}, sample_loss.options().dtype(at::kFloat));
  at::Tensor gradient = at::empty({samples}, losses.options());

  const double* l = losses.const_data_ptr<double>();
  const int64_t* id = id_tensor.const_data_ptr<int64_t>();
  const float* m = gates.const_data_ptr<float>();
  const int64_t* s = state.const_data_ptr<int64_t>();
  const double balance = balance_pressure(s);
  double total = 0;
  const double rounding = sample_loss.scalar_type() == at::kHalf       ? kFloat16LossRounding
                          : sample_loss.scalar_type() == at::kBFloat16 ? kBFloat16LossRounding
                                                                       : kLossRounding;
  for (int64_t b = 0; b < samples; ++b) {
    const double given = without_rounding(l[b], rounding);
    TORCH_CHECK_VALUE(!(given < 0), "sample_loss[", b, "] (dataset index ", id[b],
                      ") must be at least 0; found ", l[b]);
    const double weight = sample_weight(s, m[id[b]]);
    total += weight * given;
    pressures.mutable_data_ptr<float>()[b] = sample_pressure(s, balance, given, true);
    gradient.mutable_data_ptr<double>()[b] = weight / static_cast<double>(samples);
  }
  loss.fill_(samples == 0 ? 0.0 : total / static_cast<double>(samples));
  return {loss, pressures, gradient.to(accumulate)};
}

at::Tensor scale_gradient_cpu(const at::Tensor& gradient, const at::Tensor& upstream) {
  return at::mul(gradient, upstream);
}

void scale_gradient__cpu(at::Tensor& gradient, const at::Tensor& upstream) {
  if (upstream.item().toDouble() != 1.0) gradient.mul_(upstream);
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) {
  m.impl("masked_loss", masked_loss_cpu);
  m.impl("scale_gradient", scale_gradient_cpu);
  m.impl("scale_gradient_", scale_gradient__cpu);
}

}  // namespace adapruner::cpu
