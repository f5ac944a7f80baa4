// Code that the cross entropy kernels share: the sums of a row, its factors, and the end of a unit.
// The formulas are in csrc/math/cross_entropy.h.
#pragma once

#include "../math/cross_entropy.h"
#include "../math/exp.h"
#include "cross_entropy_plan.h"
#include "loss_batch.cuh"

namespace adapruner::cuda {

// exp(x) for x ≤ 0, with a relative error of at most 2⁻²² + |x|·1e−7. Results below 2⁻¹²⁶ are 0.
// NaN gives NaN. The CPU's version is in csrc/math/exp.h. This one is one instruction of a special
// function unit. With a polynomial, long rows would wait for arithmetic instead of memory.
__device__ inline float exp_of(float x) {
  float y;
#ifdef ADAPRUNER_EMULATE
  y = std::exp2(x * kLog2E);
  if (y < std::numeric_limits<float>::min()) y = 0;
#else
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * kLog2E));
#endif
  return y;
}
__device__ inline double exp_of(double x) { return exp(x); }

__device__ inline float log_of(float x) { return logf(x); }
__device__ inline double log_of(double x) { return log(x); }
__device__ inline float larger(float a, float b) { return fmaxf(a, b); }
__device__ inline double larger(double a, double b) { return fmax(a, b); }

template <typename A>
constexpr A kNegativeInfinity = -std::numeric_limits<A>::infinity();

// Sums over some values of a row. It has no constructors, because it is put into shared memory.
template <typename A>
struct RowSums {
  A most;      // their maximum
  A sum;       // Σ exp(x − most); 0 if all values are −inf
  A weighted;  // Σ (α/C)·w·(x − reference), with smoothing only

  // The number to subtract in exponents.
  __device__ A shift() const { return most == kNegativeInfinity<A> ? A(0) : most; }

  // Raises the maximum to `to`, which is at least the old maximum.
  __device__ void raise(A to) {
    if (to == most) return;
    sum *= exp_of(most - to);
    most = to;
  }

  // Adds value x of class c. `most` must be at least x. reference: see reference_of.
  template <bool kSmoothing>
  __device__ void add(A x, int c, A reference, const CrossEntropyBatch& batch) {
    sum += exp_of(x - shift());
    if constexpr (kSmoothing) {
      const A* weight = static_cast<const A*>(batch.class_weight);
      const A term = static_cast<A>(batch.unit_terms.smooth_weight) * (x - reference);
      weighted += weight == nullptr ? term : weight[c] * term;
    }
  }
};

template <typename A>
__device__ RowSums<A> no_sums() {
  return {kNegativeInfinity<A>, A(0), A(0)};
}

// Reduces the sums of `width` lanes, a power of two. All of these lanes get the result, with the
// same bits.
template <bool kSmoothing, typename A>
__device__ RowSums<A> reduce_lanes(RowSums<A> sums, int width) {
  A most = sums.most;
  for (int apart = width / 2; apart > 0; apart /= 2) {
    most = larger(most, __shfl_xor_sync(kFullWarp, most, apart));
  }
  sums.raise(most);
  for (int apart = width / 2; apart > 0; apart /= 2) {
    sums.sum += __shfl_xor_sync(kFullWarp, sums.sum, apart);
    if constexpr (kSmoothing) {
      sums.weighted += __shfl_xor_sync(kFullWarp, sums.weighted, apart);
    }
  }
  return sums;
}

// The reference of differences: the target's logit, or 0 if that is not finite. The loss is then
// not finite for any reference.
template <typename A>
__device__ A reference_of(A target_logit) {
  return target_logit - target_logit == 0 ? target_logit : A(0);
}

template <bool kSmoothing, typename A>
__device__ RowTerms<A> terms_of(const CrossEntropyBatch& batch, int64_t target) {
  const A* weight = static_cast<const A*>(batch.class_weight);
  const A own = weight == nullptr ? A(1) : weight[target];
  if constexpr (!kSmoothing) return {own, A(0), A(0)};
  const A total = weight == nullptr ? static_cast<A>(batch.classes)
                                    : *static_cast<const A*>(batch.total_weight);
  return {static_cast<A>(batch.unit_terms.target_weight * own),
          static_cast<A>(batch.unit_terms.smooth_weight), total};
}

// Factors that are the same for a whole row, times the scale of its gradient.
template <typename A>
struct RowFactors {
  A softmax;    // A in csrc/math/cross_entropy.h; divided by Σ exp later
  A smoothing;  // α / C
  A target;     // (1 − α)·w_y
  bool counts;  // false: all factors are 0, and so is the gradient
};

// The factors of the first of each `width` lanes.
template <typename A>
__device__ RowFactors<A> of_first_lane(const RowFactors<A>& factors, int width) {
  return {__shfl_sync(kFullWarp, factors.softmax, 0, width),
          __shfl_sync(kFullWarp, factors.smoothing, 0, width),
          __shfl_sync(kFullWarp, factors.target, 0, width),
          __shfl_sync(kFullWarp, int{factors.counts}, 0, width) != 0};
}

// The gradient of a row's values, from its sums and factors.
template <bool kSmoothing, typename A>
struct RowGradient {
  A shift, softmax, smoothing, target;
  bool counts;
  const A* class_weight;  // of class 0; null: ones

  __device__ RowGradient(const RowSums<A>& sums, const RowFactors<A>& factors,
                         const CrossEntropyBatch& batch)
      : shift(sums.shift()),
        softmax(factors.softmax / sums.sum),
        smoothing(factors.smoothing),
        target(factors.target),
        counts(factors.counts),
        class_weight(static_cast<const A*>(batch.class_weight)) {}

  // The gradient for value x of class c in a row that counts, without the term of the target.
  __device__ A before_target(A x, int c) const {
    const A g = exp_of(x - shift) * softmax;
    if constexpr (!kSmoothing) return g;
    return g - (class_weight == nullptr ? smoothing : smoothing * class_weight[c]);
  }

  __device__ A operator()(A x, int c, bool is_target) const {
    if (!counts) return A(0);
    const A g = before_target(x, c);
    return is_target ? g - target : g;
  }
};

// True if a row counts: its target is a class. An invalid target is an error, which is written into
// the state if `tell`.
__device__ inline bool row_counts(const CrossEntropyBatch& batch, int64_t row, int64_t target,
                                  bool tell) {
  if (target == batch.ignore_index) return false;
  if (target >= 0 && target < batch.classes) return true;
  if (tell) note_error(batch.state, kBadTarget, row, target);
  return false;
}

__device__ inline SampleRows sample_rows(const CrossEntropyBatch& batch, int64_t b, int64_t count) {
  const double weight = weight_of(batch, b);
  const double scale = weight * batch.unit_scale;
  return {weight, count > 1 ? scale / static_cast<double>(count) : scale, count, 0};
}

// Counts the rows of each sample that are not ignored, with `parts` blocks for each sample. If
// parts > 1, sample_rows must be zeros.
__global__ void __launch_bounds__(kMostThreads)
    prepare_samples_kernel(CrossEntropyBatch batch, int parts) {
  const int64_t b = blockIdx.x / parts, part = blockIdx.x - b * parts;
  int64_t count = 0;
#pragma unroll 4
  for (int64_t i = part * blockDim.x + threadIdx.x; i < batch.rows; i += parts * blockDim.x) {
    const int64_t row = b * batch.rows + i;
    count += row_counts(batch, row, batch.target[row], true);
  }
  count = block_reduce<Sum>(count, int64_t{0});
  if (threadIdx.x != 0) return;
  SampleRows& of_sample = batch.sample_rows[b];
  if (parts > 1) {
    atomic_add(&of_sample.count, count);
    if (!is_last(&of_sample.done, parts)) return;
    count = of_sample.count;
  }
  of_sample = sample_rows(batch, b, count);
  if (b == 0 && batch.done != nullptr) *batch.done = 0;
}

// Facts about a row that all its threads know. `place` is its place in the unit.
struct Row {
  int64_t sample, number, target;  // number: of the row in its sample
  bool there, counts;

  __device__ Row(const CrossEntropyBatch& batch, const CrossEntropyPlan& plan, const UnitRows& unit,
                 int64_t place, bool leader)
      : sample(plan.prepared ? unit.sample : unit.sample + place),
        number(plan.prepared ? unit.first + place : 0),
        target(batch.ignore_index),
        there(place < unit.rows),
        counts(false) {
    if (!there) return;
    const int64_t flat = sample * batch.rows + number;
    target = batch.target[flat];
    counts = row_counts(batch, flat, target, leader && !plan.prepared);
  }

  template <typename T>
  __device__ T* in(T* rows, const Strides& strides, int64_t origin) const {
    return rows + sample * strides.sample + (number - origin) * strides.row;
  }
};

// Facts that one thread of a row, its leader, looks up while the other threads read the row, and
// the results that it computes from the sums.
template <typename A>
struct Leader {
  int64_t sample;
  SampleRows of;
  RowTerms<A> terms;
  RowFactors<A> factors;
  RowSums<A> sums;
  A target_logit;

  template <bool kSmoothing, typename T>
  __device__ void look_up(const CrossEntropyBatch& batch, const CrossEntropyPlan& plan,
                          const Row& row, const T* x, int64_t apart = 1) {
    sample = row.sample;
    of = plan.prepared ? batch.sample_rows[row.sample] : sample_rows(batch, row.sample, row.counts);
    factors = {A(0), A(0), A(0), false};
    if (!row.counts || of.weight == kNoPart) return;
    target_logit = widen(x[row.target * apart]);
    terms = terms_of<kSmoothing, A>(batch, row.target);
    const A scale = static_cast<A>(of.scale);
    factors = {scale * softmax_weight(terms), scale * terms.smooth_weight,
               scale * terms.target_weight, true};
  }

  // The row's part of the sum of its block.
  __device__ double end(const CrossEntropyBatch& batch, const CrossEntropyPlan& plan) const {
    double loss = 0;
    if (factors.counts) {
      loss = row_loss(terms, log_of(sums.sum) - (target_logit - sums.shift()), sums.weighted);
    }
    if (plan.prepared) return loss;
    return finish_sample<A>(batch, sample, of.weight, loss, of.count);
  }
};

// Ends a unit. Every thread calls it with its part of the sum. After the next barrier, `last` tells
// all threads whether this was the last unit.
template <typename A>
__device__ void leave_unit(const CrossEntropyBatch& batch, const CrossEntropyPlan& plan,
                           int64_t unit, double part, bool& last) {
  double sum = plan.block_rows == 1 ? part : block_reduce<Sum>(part, 0.0);
  if (threadIdx.x != 0) return;
  if (plan.prepared && plan.parts == 1) {
    const SampleRows& rows = batch.sample_rows[unit];
    sum = finish_sample<A>(batch, unit, rows.weight, sum, rows.count);
  }
  last = leave(batch, unit, sum);
}

// Called by all threads of the block of the last unit.
template <typename A>
__device__ void finish_units(const CrossEntropyBatch& batch, const CrossEntropyPlan& plan) {
  if (plan.parts == 1) {
    finish_loss<A>(batch, sum_left(batch.partial, threadIdx.x, batch.units, blockDim.x));
    return;
  }
  // First a warp adds the parts of each sample, then a thread finishes each sample.
  for (int64_t b = warp(); b < batch.samples; b += blockDim.x / kWarpSize) {
    const double* parts = batch.partial + b * plan.parts;
    const double sum = warp_reduce<Sum>(sum_left(parts, lane(), plan.parts, kWarpSize));
    if (lane() == 0) batch.partial[b * plan.parts] = sum;
  }
  __syncthreads();
  double total = 0;
  for (int64_t b = threadIdx.x; b < batch.samples; b += blockDim.x) {
    const SampleRows& rows = batch.sample_rows[b];
    const double sum = batch.partial[b * plan.parts];
    total += finish_sample<A>(batch, b, rows.weight, sum, rows.count);
  }
  finish_loss<A>(batch, total);
}

}  // namespace adapruner::cuda
