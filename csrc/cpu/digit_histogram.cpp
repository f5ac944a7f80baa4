#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "../checks.h"
#include "../math/topk.h"
#include "partition.h"

namespace adapruner::cpu {
namespace {

Search<uint32_t> checked_search(const at::Tensor& key_range) {
  const at::Tensor range = key_range.contiguous();
  const int64_t* numbers = range.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(
      kLowestKey <= numbers[0] && numbers[0] <= numbers[1] && numbers[1] <= kHighestKey,
      "key_range must begin with two ascending keys in [", kLowestKey, ", ", kHighestKey,
      "]; found ", numbers[0], " and ", numbers[1]);
  return search_in(numbers);
}

at::Tensor digit_histogram_cpu(const at::Tensor& gate_logits, const at::Tensor& key_range) {
  check_digit_histogram(gate_logits, key_range);
  const Search<uint32_t> search = checked_search(key_range);
  const at::Tensor values = gate_logits.contiguous();
  const float* x = values.const_data_ptr<float>();
  const Partition partition(values.numel());
  std::vector<std::array<int64_t, kDigits + 1>> counts(partition.tasks());
  partition.each_task([&](int64_t task) {
    auto& mine = counts[task];
    for (int64_t i = partition.begin(task); i < partition.end(task); ++i) {
      const uint32_t key = order_key(x[i]);
      if (key < search.range.low || x[i] != x[i]) continue;
      const bool beyond = key > search.range.high;
      ++mine[beyond ? kDigits : digit_of(key, search.range.low, search.shift)];
    }
  });
  at::Tensor histogram = at::zeros({kDigits + 1}, key_range.options());
  int64_t* out = histogram.mutable_data_ptr<int64_t>();
  for (const auto& mine : counts) {
    for (int digit = 0; digit <= kDigits; ++digit) out[digit] += mine[digit];
  }
  return histogram;
}

at::Tensor narrowed_range_cpu(const at::Tensor& key_range, const at::Tensor& histogram) {
  check_narrowed_range(key_range, histogram);
  const Search<uint32_t> search = checked_search(key_range);
  const at::Tensor dense = histogram.contiguous();
  const int64_t* counts = dense.const_data_ptr<int64_t>();
  int64_t inside = 0;
  for (int digit = 0; digit < kDigits; ++digit) inside += counts[digit];
  TORCH_CHECK_VALUE(
      search.rank >= 1 && search.rank <= inside, "the rank of key_range must be in [1, ", inside,
      "], the number of values that the histogram counts in the range; found ", search.rank);
  const DigitRank found = find_digit(counts, kDigits, search.rank);
  at::Tensor narrower = at::empty({3}, key_range.options());
  write_range(narrowed(search, found, 0), narrower.mutable_data_ptr<int64_t>());
  return narrower;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) {
  m.impl("digit_histogram", digit_histogram_cpu);
  m.impl("narrowed_range", narrowed_range_cpu);
}

}  // namespace adapruner::cpu
