#include "masked_order.h"

#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include "../checks.h"
#include "context.h"
#include "scratch_tensors.h"

namespace adapruner::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor> masked_order_cuda(const at::Tensor& mask, int64_t num_samples,
                                                     int64_t key, int64_t position, int64_t count) {
  check_masked_order(mask, num_samples, position, count);
  const Context context(mask);
  const at::Tensor bits = mask.contiguous();
  const auto options = bits.options().dtype(at::kLong);
  const at::Tensor indices = at::empty({std::min(count, num_samples - position)}, options);
  ScratchTensors scratch(bits);
  const OrderEnd end =
      write_order(bits.const_data_ptr<uint8_t>(), num_samples, static_cast<uint64_t>(key), position,
                  count, indices.mutable_data_ptr<int64_t>(), context.multiprocessors,
                  std::ref(scratch), context.stream);
  return {indices.narrow(0, 0, end.kept), at::scalar_tensor(end.position, options)};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) { m.impl("masked_order", masked_order_cuda); }

}  // namespace adapruner::cuda
