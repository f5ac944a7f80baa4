#include "simd/masked_order.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../checks.h"
#include "partition.h"

namespace adapruner::cpu {
namespace {

// Runs keep_permuted in several threads. Each thread writes where it would write if the threads
// before it kept every sample. Then the parts are moved together.
int64_t keep_in_parallel(const Permutation& p, int64_t position, int64_t n, const uint8_t* mask,
                         int64_t* indices) {
  const Partition partition(n);
  std::vector<int64_t> kept(partition.tasks());
  partition.each_task([&](int64_t task) {
    const int64_t begin = partition.begin(task), size = partition.end(task) - begin;
    kept[task] =
        ADAPRUNER_DISPATCH(keep_permuted, p, position + begin, size, mask, indices + begin);
  });
  int64_t total = kept[0];
  for (int64_t task = 1; task < partition.tasks(); ++task) {
    const int64_t* mine = indices + partition.begin(task);
    std::copy(mine, mine + kept[task], indices + total);
    total += kept[task];
  }
  return total;
}

std::tuple<at::Tensor, at::Tensor> masked_order_cpu(const at::Tensor& mask, int64_t num_samples,
                                                    int64_t key, int64_t position, int64_t count) {
  check_masked_order(mask, num_samples, key, position, count);
  const at::Tensor bits = mask.contiguous();
  const Permutation p = make_permutation(std::max<int64_t>(num_samples, 1), key);
  const at::Tensor indices = at::empty({std::min(count, num_samples - position)}, at::kLong);
  int64_t* out = indices.mutable_data_ptr<int64_t>();
  int64_t kept = 0;
  // A stretch is never longer than the number of samples still wanted, so it cannot find too many.
  // The next position is therefore the end of the stretch.
  while (kept < count && position < num_samples) {
    const int64_t stretch = std::min(count - kept, num_samples - position);
    kept += keep_in_parallel(p, position, stretch, bits.const_data_ptr<uint8_t>(), out + kept);
    position += stretch;
  }
  return {indices.narrow(0, 0, kept), at::scalar_tensor(position, at::kLong)};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) { m.impl("masked_order", masked_order_cpu); }

}  // namespace adapruner::cpu
