#include "simd/sampling_keys.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>

#include "../checks.h"
#include "../math/sampling.h"
#include "huge_pages.h"
#include "partition.h"

namespace adapruner::cpu {
namespace {

at::Tensor sampling_keys_cpu(const at::Tensor& gate_logits, const at::Tensor& age, double scale,
                             double turns, int64_t key, double ceiling) {
  check_sampling_keys(gate_logits, age, scale, turns, key, ceiling);
  const at::Tensor m = gate_logits.contiguous(), ages = age.contiguous();
  const at::Tensor keys = at::empty(m.sizes(), m.options());
  advise_huge_pages(keys);
  std::array<double, kAges> age_terms;
  for (int a = 0; a < kAges; ++a) age_terms[a] = age_term(turns, a);
  const SamplingKeys work{m.const_data_ptr<float>(),
                          ages.const_data_ptr<uint8_t>(),
                          scale,
                          age_terms.data(),
                          static_cast<uint64_t>(key),
                          ceiling,
                          keys.mutable_data_ptr<float>()};
  const Partition partition(m.numel());
  partition.each_task([&](int64_t task) {
    ADAPRUNER_DISPATCH(write_keys, work, partition.begin(task), partition.end(task));
  });
  return keys;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) { m.impl("sampling_keys", sampling_keys_cpu); }

}  // namespace adapruner::cpu
