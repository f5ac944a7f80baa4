#include "scale_gradient.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../checks.h"
#include "context.h"

namespace adapruner::cuda {
namespace {

void scale(const at::Tensor& gradient, at::Tensor& out, const at::Tensor& upstream) {
  check_floats(gradient, "gradient");
  TORCH_CHECK_VALUE(upstream.numel() == 1, "upstream must be a scalar; found shape ",
                    upstream.sizes());
  check_device(upstream, gradient, "upstream");
  const Context context(gradient);
  const at::Tensor factor =
      upstream.to(gradient.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  scale_gradient(type_of(gradient), gradient.const_data_ptr(), out.mutable_data_ptr(),
                 gradient.numel(), factor.const_data_ptr(), context.multiprocessors,
                 context.stream);
}

at::Tensor scale_gradient_cuda(const at::Tensor& gradient, const at::Tensor& upstream) {
  const at::Tensor dense =
      gradient.is_non_overlapping_and_dense() ? gradient : gradient.contiguous();
  at::Tensor out = at::empty_like(dense);
  scale(dense, out, upstream);
  return out;
}

void scale_gradient__cuda(at::Tensor& gradient, const at::Tensor& upstream) {
  if (gradient.is_non_overlapping_and_dense()) return scale(gradient, gradient, upstream);
  gradient.copy_(scale_gradient_cuda(gradient, upstream));
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) {
  m.impl("scale_gradient", scale_gradient_cuda);
  m.impl("scale_gradient_", scale_gradient__cuda);
}

}  // namespace adapruner::cuda
