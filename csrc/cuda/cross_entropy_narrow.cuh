// Rows of few classes. Several lanes of a warp share a row. Its values stay in registers.
#pragma once

#include "cross_entropy_rows.cuh"

namespace adapruner::cuda {

template <typename T, bool kSmoothing>
__global__ void __launch_bounds__(kBlockThreads, kRowBlocks)
    narrow_rows_kernel(CrossEntropyBatch batch, CrossEntropyRows<T> rows, CrossEntropyPlan plan,
                       int64_t first_unit) {
  using A = Accumulator<T>;
  __shared__ bool last;
  const int width = plan.row_threads;
  const int t = static_cast<int>(threadIdx.x) & (width - 1);
  const int slot = static_cast<int>(threadIdx.x) >> plan.row_shift;
  const int classes = static_cast<int>(batch.classes);
  const int64_t number = first_unit + blockIdx.x;
  const UnitRows unit = rows_of(plan, batch.samples, batch.rows, number);
  double part = 0;
  for (int64_t turn = 0; turn < unit.rows; turn += plan.block_rows) {
    const Row row(batch, plan, unit, turn + slot, t == 0);
    const T* x = row.in(rows.logits, rows.logit_strides, rows.origin);
    A values[kNarrowValues];
    RowSums<A> sums = no_sums<A>();
#pragma unroll
    for (int k = 0; k < kNarrowValues; ++k) {
      const int c = t + k * width;
      values[k] = row.counts && c < classes ? widen(x[c]) : kNegativeInfinity<A>;
      sums.most = larger(sums.most, values[k]);
    }
    const A reference = kSmoothing && row.counts ? reference_of(widen(x[row.target])) : A(0);
    Leader<A> leader{};
    if (t == 0 && row.there) leader.template look_up<kSmoothing>(batch, plan, row, x);

#pragma unroll
    for (int k = 0; k < kNarrowValues; ++k) {
      const int c = t + k * width;
      if (row.counts && c < classes) sums.template add<kSmoothing>(values[k], c, reference, batch);
    }
    sums = reduce_lanes<kSmoothing>(sums, width);
    leader.sums = sums;
    if (t == 0 && row.there) part += leader.end(batch, plan);
    const RowFactors<A> factors = of_first_lane(leader.factors, width);
    __syncwarp();  // the leader has read the target logit, which another lane may overwrite now
    if (rows.gradient == nullptr || !row.there) continue;
    T* out = row.in(rows.gradient, rows.gradient_strides, rows.origin);
    const RowGradient<kSmoothing, A> gradient(sums, factors, batch);
#pragma unroll
    for (int k = 0; k < kNarrowValues; ++k) {
      const int c = t + k * width;
      if (c < classes) out[c] = narrow<T>(gradient(values[k], c, c == row.target));
    }
  }
  leave_unit<A>(batch, plan, number, part, last);
  __syncthreads();
  if (last) finish_units<A>(batch, plan);
}

}  // namespace adapruner::cuda
