#include "digit_histogram.h"

#include <torch/library.h>

#include "../checks.h"
#include "../math/topk.h"
#include "context.h"
#include "scratch_tensors.h"

namespace adapruner::cuda {
namespace {

at::Tensor digit_histogram_cuda(const at::Tensor& gate_logits, const at::Tensor& key_range) {
  check_digit_histogram(gate_logits, key_range);
  const Context context(gate_logits);
  const at::Tensor values = dense(gate_logits), range = key_range.contiguous();
  at::Tensor histogram = at::empty({kDigits + 1}, range.options());
  count_key_digits(values.const_data_ptr<float>(), values.numel(), range.const_data_ptr<int64_t>(),
                   histogram.mutable_data_ptr<int64_t>(), context.multiprocessors, context.stream);
  return histogram;
}

at::Tensor narrowed_range_cuda(const at::Tensor& key_range, const at::Tensor& histogram) {
  check_narrowed_range(key_range, histogram);
  const Context context(key_range);
  const at::Tensor range = key_range.contiguous(), counts = histogram.contiguous();
  at::Tensor narrower = at::empty({3}, range.options());
  narrow_key_range(range.const_data_ptr<int64_t>(), counts.const_data_ptr<int64_t>(),
                   narrower.mutable_data_ptr<int64_t>(), context.stream);
  return narrower;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) {
  m.impl("digit_histogram", digit_histogram_cuda);
  m.impl("narrowed_range", narrowed_range_cuda);
}

}  // namespace adapruner::cuda
