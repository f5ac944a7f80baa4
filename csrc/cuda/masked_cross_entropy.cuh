// Launches of a cross entropy.
#pragma once

#include "cross_entropy_narrow.cuh"
#include "cross_entropy_strided.cuh"
#include "cross_entropy_wide.cuh"

namespace adapruner::cuda {

constexpr int64_t kPreparedRows = 4096;  // least rows of a sample that a block counts

// Prepares a batch. Called before its first rows.
inline void prepare_cross_entropy(const CrossEntropyBatch& batch, const CrossEntropyPlan& plan,
                                  cudaStream_t stream) {
  if (plan.prepared) {
    const int64_t threads = std::min<int64_t>(power_of_two_from(batch.rows), kMostThreads);
    // No more blocks than units, which fill the device.
    const int64_t parts = std::min(plan.parts, ceil_div<int64_t>(batch.rows, kPreparedRows));
    if (parts > 1) {
      const size_t bytes = batch.samples * sizeof *batch.sample_rows;
      check(cudaMemsetAsync(batch.sample_rows, 0, bytes, stream));
    }
    launch(prepare_samples_kernel, static_cast<unsigned>(batch.samples * parts),
           static_cast<unsigned>(std::max<int64_t>(threads, kWarpSize)), 0, stream, batch,
           static_cast<int>(parts));
  } else if (batch.done != nullptr) {
    check(cudaMemsetAsync(batch.done, 0, sizeof *batch.done, stream));
  }
}

// Runs the units [begin, end) of a batch. The results of the batch are complete once all units have
// run, in any number of launches.
template <typename T>
void cross_entropy_rows(const CrossEntropyBatch& batch, const CrossEntropyPlan& plan,
                        const CrossEntropyRows<T>& rows, int64_t begin, int64_t end,
                        cudaStream_t stream) {
  using A = Accumulator<T>;
  const bool strided = plan.kernel == CrossEntropyPlan::Kernel::kStrided;
  const size_t shared = strided ? plan.threads * sizeof(RowSums<A>)
                                : static_cast<size_t>(plan.shared_packs) * kPackBytes;
  const auto start = [&](auto narrow, auto wide, auto strided) {
    const auto kernel = plan.kernel == CrossEntropyPlan::Kernel::kNarrow ? narrow
                        : plan.kernel == CrossEntropyPlan::Kernel::kWide ? wide
                                                                         : strided;
    launch(kernel, static_cast<unsigned>(end - begin), plan.threads, shared, stream, batch, rows,
           plan, begin);
  };
  if (batch.unit_terms.smooth_weight == 0) {
    start(narrow_rows_kernel<T, false>, wide_rows_kernel<T, false>, strided_rows_kernel<T, false>);
  } else {
    start(narrow_rows_kernel<T, true>, wide_rows_kernel<T, true>, strided_rows_kernel<T, true>);
  }
}

}  // namespace adapruner::cuda
