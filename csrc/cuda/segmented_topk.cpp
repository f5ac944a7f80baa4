#include "segmented_topk.h"

#include <ATen/ops/eq.h>
#include <torch/library.h>

#include "../checks.h"
#include "context.h"
#include "integer_tensors.h"
#include "scratch_tensors.h"

namespace adapruner::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor> segmented_topk_cuda(const at::Tensor& gate_logits,
                                                       const at::Tensor& segments,
                                                       const at::Tensor& quotas,
                                                       std::optional<double> slope) {
  check_segmented_topk(gate_logits, segments, quotas, slope);
  const Context context(gate_logits);
  const at::Tensor values = dense(gate_logits);
  const at::Tensor groups = dense(native_integers(segments));
  const at::Tensor limits = as_int64(quotas.to(values.device()));
  const int64_t n = values.numel(), count = limits.size(0);
  at::Tensor mask = empty_mask(n, values);
  at::Tensor sums = at::empty({slope ? 2 : 0}, values.options().dtype(at::kLong));
  ScratchTensors scratch(values);
  const SegmentedErrors errors =
      select_segmented(values.const_data_ptr<float>(), n, integers_of(groups), count,
                       limits.const_data_ptr<int64_t>(), slope.value_or(0), words_of(mask),
                       slope ? sums.mutable_data_ptr<int64_t>() : nullptr, context.multiprocessors,
                       std::ref(scratch), context.stream);
  check_no_nan(errors.nan);
  if (errors.outside >= 0) {
    refuse_segment(errors.outside, groups[errors.outside].item<int64_t>(), count);
  }
  if (errors.quota >= 0) {
    refuse_quota(errors.quota, limits[errors.quota].item<int64_t>(),
                 groups.eq(errors.quota).sum().item<int64_t>());
  }
  return {mask, sums};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) { m.impl("segmented_topk", segmented_topk_cuda); }

}  // namespace adapruner::cuda
