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

std::tuple<at::Tensor, at::Tensor> topk_indices_cuda(const at::Tensor& gate_logits, int64_t k,
                                                     std::optional<double> slope) {
  auto [mask, sums] = topk_mask_cuda(gate_logits, k, slope);
  const Context context(gate_logits);
  at::Tensor indices = at::empty({k}, sums.options());
  ScratchTensors scratch(mask);
  mask_indices(words_of(mask), gate_logits.numel(), indices.mutable_data_ptr<int64_t>(),
               context.multiprocessors, std::ref(scratch), context.stream);
  return {indices, sums};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) {
  m.impl("topk_mask", topk_mask_cuda);
  m.impl("topk_indices", topk_indices_cuda);
}

}  // namespace adapruner::cuda
