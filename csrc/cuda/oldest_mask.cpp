#include "oldest_mask.h"

#include <torch/library.h>

#include "../checks.h"
#include "context.h"
#include "scratch_tensors.h"

namespace adapruner::cuda {
namespace {

at::Tensor oldest_mask_cuda(const at::Tensor& candidates, const at::Tensor& age, int64_t count,
                            int64_t key) {
  check_oldest_mask(candidates, age, count, key);
  const Context context(candidates);
  const at::Tensor bits = candidates.contiguous(), ages = dense(age);
  const at::Tensor mask = at::empty(bits.sizes(), bits.options());
  ScratchTensors scratch(bits);
  write_oldest(bits.const_data_ptr<uint8_t>(), ages.const_data_ptr<uint8_t>(), ages.size(0), count,
               static_cast<uint64_t>(key), mask.mutable_data_ptr<uint8_t>(),
               context.multiprocessors, std::ref(scratch), context.stream);
  return mask;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) { m.impl("oldest_mask", oldest_mask_cuda); }

}  // namespace adapruner::cuda
