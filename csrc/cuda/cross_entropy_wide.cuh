// Rows of many classes. One or more warps share a row and read it from memory once. Packs of 16
// bytes stay in registers, and further packs in shared memory. If a row is even longer, the rest is
// read twice, the second time from the cache if it is large enough.
#pragma once

#include "cross_entropy_rows.cuh"
#include "words.cuh"

namespace adapruner::cuda {

constexpr int kUnroll = 4;  // packs that a thread loads at a time, except those it holds
constexpr int kMostSlots = kBlockThreads / kWarpSize;  // most rows of a block

// A row in memory: `head` values up to the first 16-byte boundary, then packs, then `rest` values.
template <typename T>
struct Cut {
  static constexpr int kSize = Words<T>::kSize;
  int head, packs, rest;

  __device__ Cut(const T* row, int classes) {
    const auto beyond = static_cast<int>(reinterpret_cast<uintptr_t>(row) % kPackBytes / sizeof(T));
    head = beyond == 0 ? 0 : kSize - beyond;
    if (head > classes) head = classes;
    packs = (classes - head) / kSize;
    rest = classes - head - packs * kSize;
  }

  // The class outside the packs that thread t processes, or −1.
  __device__ int edge(int t) const {
    if (t < head) return t;
    return t >= kSize && t - kSize < rest ? head + packs * kSize + t - kSize : -1;
  }
};

// Adds the first `count` packs, of classes c, c + step, …, to the sums of a thread.
template <bool kSmoothing, int kPacks, typename T, typename A>
__device__ void add_packs(RowSums<A>& sums, Words<T> (&packs)[kPacks], int count, int c, int step,
                          A reference, const CrossEntropyBatch& batch) {
  A most = sums.most;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (k >= count) break;
#pragma unroll
    for (int j = 0; j < Words<T>::kSize; ++j) most = larger(most, packs[k][j]);
    packs[k].forget();
  }
  sums.raise(most);
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (k >= count) break;
#pragma unroll
    for (int j = 0; j < Words<T>::kSize; ++j) {
      sums.template add<kSmoothing>(packs[k][j], c + k * step + j, reference, batch);
    }
    packs[k].forget();
  }
}

// Reduces the sums of all threads of a row: first within each warp, then over the warps through
// `shared`, where the warps of a row are consecutive.
template <bool kSmoothing, typename A>
__device__ RowSums<A> reduce_row(const RowSums<A>& sums, int t, int warps, RowSums<A>* shared) {
  const RowSums<A> of_warp = reduce_lanes<kSmoothing>(sums, kWarpSize);
  if (t % kWarpSize == 0) shared[t / kWarpSize] = of_warp;
  __syncthreads();
  return reduce_lanes<kSmoothing>(shared[t & (warps - 1)], warps);
}

// Writes the gradient of a row. Each thread writes the values that it has.
template <typename T, bool kSmoothing>
struct GradientWriter {
  using A = Accumulator<T>;
  static constexpr int kSize = Words<T>::kSize;

  const RowGradient<kSmoothing, A> gradient;
  T* out;
  int target;
  bool aligned;  // the packs of the gradient are aligned as those of the logits

  __device__ void operator()(const Words<T>& x, int c) const {
    A g[kSize];
#pragma unroll
    for (int j = 0; j < kSize; ++j) g[j] = gradient.before_target(x[j], c + j);
    if (static_cast<unsigned>(target - c) < kSize) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        if (c + j == target) g[j] -= gradient.target;
      }
    }
    put(Words<T>::of(g), c);
  }

  __device__ void put(const Words<T>& pack, int c) const {
    if (aligned) return store(out + c, pack);
#pragma unroll
    for (int j = 0; j < kSize; ++j) out[c + j] = narrow<T>(pack[j]);
  }
};

template <typename T, bool kSmoothing>
__global__ void __launch_bounds__(most_row_threads(sizeof(T), kSmoothing), 1)
    wide_rows_kernel(CrossEntropyBatch batch, CrossEntropyRows<T> rows, CrossEntropyPlan plan,
                     int64_t first_unit) {
  using A = Accumulator<T>;
  using P = Words<T>;
  constexpr int kSize = P::kSize;
  __shared__ bool last;
  // Two of each: one may still be read while the next turn writes the other.
  __shared__ RowSums<A> warp_sums[2][kMostThreads / kWarpSize];
  __shared__ Leader<A> leaders[2][kMostSlots];
  __shared__ double parts[kMostSlots];  // by slot: the rows' parts of the block's sum
  P* kept = dynamic_shared<P>();

  const int step = plan.row_threads * kSize;  // classes from a thread's pack to its next
  const UnitRows unit = rows_of(plan, batch.samples, batch.rows, first_unit + blockIdx.x);
  if (threadIdx.x < kMostSlots) parts[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll 1
  for (int turn = 0; turn < unit.rows; turn += plan.block_rows) {
    const int parity = (turn & plan.block_rows) != 0;  // block_rows is a power of two
    const int t = thread_now() & (plan.row_threads - 1), slot = thread_now() >> plan.row_shift;
    const Row row(batch, plan, unit, turn + slot, t == 0);
    const T* x = row.in(rows.logits, rows.logit_strides, rows.origin);
    T* out = row.in(rows.gradient, rows.gradient_strides, rows.origin);
    const auto target = static_cast<int>(row.target);
    if (t == 0 && row.there) {
      leaders[parity][slot].template look_up<kSmoothing>(batch, plan, row, x);
    }
    const A reference = kSmoothing && row.counts ? reference_of(widen(x[row.target])) : A(0);

    const Cut<T> cut(x, static_cast<int>(batch.classes));
    const int packs = row.counts ? cut.packs : 0;
    const int held_packs = std::min(packs, kHeldPacks << plan.row_shift);
    const int kept_packs = std::min(packs - held_packs, plan.shared_packs);
    const int begin = cut.head + t * kSize;        // first class of the thread's first pack
    const auto count = [&](int packs, int from) {  // of the thread, among `packs` from `from` on
      return (packs - from - t + plan.row_threads - 1) >> plan.row_shift;
    };
    const T* first = x + begin;
    RowSums<A> sums = no_sums<A>();
#pragma unroll 1
    for (int i = held_packs + kept_packs; i < packs; i += kUnroll << plan.row_shift) {
      P some[kUnroll];
      const int n = count(packs, i);
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        some[k] = k < n ? load<P>(first + i * kSize + k * step) : P::zero();
      }
      add_packs<kSmoothing>(sums, some, n, begin + i * kSize, step, reference, batch);
    }
#pragma unroll 1
    for (int i = 0; i < kept_packs; i += kUnroll << plan.row_shift) {
      P some[kUnroll];
      const int n = count(kept_packs, i), at = held_packs + i;
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        some[k] = k < n ? load_once<P>(first + at * kSize + k * step) : P::zero();
        if (k < n) kept[i + t + (k << plan.row_shift)] = some[k];
      }
      add_packs<kSmoothing>(sums, some, n, begin + at * kSize, step, reference, batch);
    }
    P held[kHeldPacks];
    const int held_count = count(held_packs, 0);
#pragma unroll
    for (int k = 0; k < kHeldPacks; ++k) {
      held[k] = k < held_count ? load_once<P>(first + k * step) : P::zero();
    }
    const int edge = cut.edge(t);
    A edge_value = 0;
    if (row.counts && edge >= 0) {
      edge_value = widen(x[edge]);
      sums.raise(larger(sums.most, edge_value));
      sums.template add<kSmoothing>(edge_value, edge, reference, batch);
    }
    add_packs<kSmoothing>(sums, held, held_count, begin, step, reference, batch);
    // Computed again, so that they take no registers while packs are held.
    const int late = thread_now(), late_t = late & (plan.row_threads - 1);
    const int late_slot = late >> plan.row_shift, warps = plan.row_threads / kWarpSize;
    Leader<A>& leader = leaders[parity][late_slot];
    sums = reduce_row<kSmoothing>(sums, late_t, warps, warp_sums[parity] + late_slot * warps);
    if (late_t == 0) leader.sums = sums;

    if (rows.gradient != nullptr && row.there) {
      const bool aligned = (reinterpret_cast<uintptr_t>(out + cut.head) & (kPackBytes - 1)) == 0;
      const GradientWriter<T, kSmoothing> write{
          {sums, leader.factors, batch}, out, target, aligned};
      if (edge >= 0) out[edge] = narrow<T>(write.gradient(edge_value, edge, edge == target));
      if (leader.factors.counts) {
#pragma unroll
        for (int k = 0; k < kHeldPacks; ++k) {
          if (k < held_count) write(held[k], begin + k * step);
        }
#pragma unroll 1
        for (int i = held_packs + kept_packs + t; i < packs; i += plan.row_threads) {
          write(load<P>(first + (i - t) * kSize), cut.head + i * kSize);
        }
#pragma unroll 1
        for (int i = t; i < kept_packs; i += plan.row_threads) {
          write(kept[i], cut.head + (held_packs + i) * kSize);
        }
      } else {
#pragma unroll 1
        for (int i = t; i < cut.packs; i += plan.row_threads) {
          write.put(P::zero(), cut.head + i * kSize);
        }
      }
    }
    if (late_t == 0 && row.there) parts[late_slot] += leader.end(batch, plan);
  }
  __syncthreads();
  const auto thread = static_cast<int>(threadIdx.x);
  const double part = thread < plan.block_rows ? parts[thread] : 0.0;
  leave_unit<A>(batch, plan, first_unit + blockIdx.x, part, last);
  __syncthreads();
  if (last) finish_units<A>(batch, plan);
}

}  // namespace adapruner::cuda
