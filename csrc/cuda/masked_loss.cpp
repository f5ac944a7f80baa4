#include "masked_loss.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../checks.h"
#include "loss_call.h"

namespace adapruner::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_loss_cuda(const at::Tensor& sample_loss,
                                                                const at::Tensor& ids,
                                                                const at::Tensor& gate_logits,
                                                                const at::Tensor& state) {
  check_masked_loss(sample_loss, ids, gate_logits, state);
  const Context context(sample_loss);
  const at::Tensor losses = sample_loss.contiguous();
  const at::Tensor gradient = at::empty_like(losses, losses.options().dtype(loss_type(losses)));
  LossCall call(loss_type(sample_loss), ids, gate_logits, state);
  if (call.batch.samples == 0) return {call.empty().loss, call.losses.pressure, gradient};
  call.allocate(ceil_div<int64_t>(call.batch.samples, kLossThreads), false);
  masked_loss(type_of(losses), call.batch, losses.const_data_ptr(), gradient.mutable_data_ptr(),
              context.stream);
  return {call.losses.loss, call.losses.pressure, gradient};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) { m.impl("masked_loss", masked_loss_cuda); }

}  // namespace adapruner::cuda
