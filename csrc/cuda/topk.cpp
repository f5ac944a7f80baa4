#include "topk.h"

#include <torch/library.h>

#include "../checks.h"
#include "context.h"
#include "scratch_tensors.h"

namespace adapruner::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor> topk_mask_cuda(const at::Tensor& gate_logits, int64_t k,
                                                  std::optional<double> slope) {
  check_topk(gate_logits, k, slope);
  const Context context(gate_logits);
  const at::Tensor values = dense(gate_logits);
  const int64_t n = values.numel();
  at::Tensor mask = empty_mask(n, values);
  at::Tensor sums = at::empty({slope ? 2 : 0}, values.options().dtype(at::kLong));
  ScratchTensors scratch(values);
  check_no_nan(topk_mask(values.const_data_ptr<float>(), n, k, slope.value_or(0), words_of(mask),
                         slope ? sums.mutable_data_ptr<int64_t>() : nullptr,
                         context.multiprocessors, std::ref(scratch), context.stream));
  return {mask, sums};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) { m.impl("topk_mask", topk_mask_cuda); }

}  // namespace adapruner::cuda
