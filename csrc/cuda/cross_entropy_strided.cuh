// Rows that lie side by side, as in images [B, C, H, W]. Each lane of a warp has a row, so that the
// lanes load neighbours. One or more warps share the classes. Logits are read twice, the second
// time from a cache if there are few classes.
#pragma once

#include "cross_entropy_rows.cuh"

namespace adapruner::cuda {

constexpr int kStridedUnroll = 8;  // values that a lane loads at a time

template <typename T, bool kSmoothing>
__global__ void __launch_bounds__(kBlockThreads, kRowBlocks)
    strided_rows_kernel(CrossEntropyBatch batch, CrossEntropyRows<T> rows, CrossEntropyPlan plan,
                        int64_t first_unit) {
  using A = Accumulator<T>;
  __shared__ bool last;
  RowSums<A>* shared = dynamic_shared<RowSums<A>>();  // [threads]
  const int warps = plan.row_threads;
  const int first_class = warp() & (warps - 1);
  const int slot = (warp() >> plan.row_shift) * kWarpSize + lane();
  const int classes = static_cast<int>(batch.classes);
  const int64_t number = first_unit + blockIdx.x;
  const UnitRows unit = rows_of(plan, batch.samples, batch.rows, number);
  const int64_t apart = rows.logit_strides.one;
  double part = 0;
  for (int64_t turn = 0; turn < unit.rows; turn += plan.block_rows) {
    const Row row(batch, plan, unit, turn + slot, false);
    const T* x = row.in(rows.logits, rows.logit_strides, rows.origin);
    const A reference =
        kSmoothing && row.counts ? reference_of(widen(x[row.target * apart])) : A(0);
    RowSums<A> sums = no_sums<A>();
    const int end = row.counts ? classes : 0;
    for (int c = first_class; c < end; c += kStridedUnroll * warps) {
      A values[kStridedUnroll], most = sums.most;
#pragma unroll
      for (int k = 0; k < kStridedUnroll; ++k) {
        const int at = c + k * warps;
        values[k] = at < end ? widen(x[at * apart]) : kNegativeInfinity<A>;
      }
#pragma unroll
      for (int k = 0; k < kStridedUnroll; ++k) most = larger(most, values[k]);
      sums.raise(most);
#pragma unroll
      for (int k = 0; k < kStridedUnroll; ++k) {
        const int at = c + k * warps;
        if (at < end) sums.template add<kSmoothing>(values[k], at, reference, batch);
      }
    }
    Leader<A> leader{};
    if (row.there) leader.template look_up<kSmoothing>(batch, plan, row, x, apart);

    // Reduces over the warps of a row, in their order.
    shared[threadIdx.x] = sums;
    __syncthreads();
    const RowSums<A>* of_row = shared + (warp() - first_class) * kWarpSize + lane();
    A most = kNegativeInfinity<A>;
    for (int w = 0; w < warps; ++w) most = larger(most, of_row[w * kWarpSize].most);
    sums = {most, A(0), A(0)};
    for (int w = 0; w < warps; ++w) {
      RowSums<A> other = of_row[w * kWarpSize];
      other.raise(most);
      sums.sum += other.sum;
      sums.weighted += other.weighted;
    }
    __syncthreads();  // `shared` can be written again

    leader.sums = sums;
    if (first_class == 0 && row.there) part += leader.end(batch, plan);
    if (rows.gradient == nullptr || !row.there) continue;
    T* out = row.in(rows.gradient, rows.gradient_strides, rows.origin);
    const int64_t out_apart = rows.gradient_strides.one;
    const RowGradient<kSmoothing, A> gradient(sums, leader.factors, batch);
    if (!gradient.counts) {
      for (int c = first_class; c < classes; c += warps) out[c * out_apart] = narrow<T>(A(0));
      continue;
    }
    for (int c = first_class; c < classes; c += kStridedUnroll * warps) {
      A values[kStridedUnroll];
#pragma unroll
      for (int k = 0; k < kStridedUnroll; ++k) {
        const int at = c + k * warps;
        if (at < classes) values[k] = widen(x[at * apart]);
      }
#pragma unroll
      for (int k = 0; k < kStridedUnroll; ++k) {
        const int at = c + k * warps;
        if (at < classes) {
          out[at * out_apart] = narrow<T>(gradient(values[k], at, at == row.target));
        }
      }
    }
  }
  leave_unit<A>(batch, plan, number, part, last);
  __syncthreads();
  if (last) finish_units<A>(batch, plan);
}

}  // namespace adapruner::cuda
