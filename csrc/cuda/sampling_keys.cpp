#include "sampling_keys.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "context.h"

namespace adapruner::cuda {
namespace {

at::Tensor sampling_keys_cuda(const at::Tensor& gate_logits, const at::Tensor& age, double scale,
                              double turns, int64_t key, double ceiling) {
  check_sampling_keys(gate_logits, age, scale, turns, key, ceiling);
  const Context context(gate_logits);
  const at::Tensor m = gate_logits.contiguous(), ages = age.contiguous();
  const at::Tensor keys = at::empty(m.sizes(), m.options());
  write_sampling_keys(m.const_data_ptr<float>(), ages.const_data_ptr<uint8_t>(), m.numel(), scale,
                      turns, static_cast<uint64_t>(key), ceiling, keys.mutable_data_ptr<float>(),
                      context.multiprocessors, context.stream);
  return keys;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) { m.impl("sampling_keys", sampling_keys_cuda); }

}  // namespace adapruner::cuda
