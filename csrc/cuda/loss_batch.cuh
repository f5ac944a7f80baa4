// Samples of a batch: their weights, their losses and pressures, and the loss of the batch. The
// loss is computed in the launch that computes the sample losses. The last block to finish adds the
// sums of all blocks, in the order of their numbers.
#pragma once

#include "../math/gate.h"
#include "cross_entropy_batch.h"
#include "device.h"
#include "errors.h"
#include "scan.cuh"

namespace adapruner::cuda {

constexpr double kNoPart = -1.0;  // weight of a sample that takes no part

// s of sample b. An id out of range is written into the state as an error.
__device__ inline double weight_of(const LossBatch& batch, int64_t b) {
  const int64_t id = batch.ids[b];
  if (id < 0 || id >= batch.gates) {
    note_error(batch.state, kBadId, b, id);
    return kNoPart;
  }
  return sample_weight(batch.state, batch.gate_logits[id]);
}

// Writes ℓ and the pressure of sample b, from the sum of the losses of its `count` rows. Returns
// its part of the loss of the batch.
template <typename A>
__device__ double finish_sample(const LossBatch& batch, int64_t b, double weight, double sum,
                                int64_t count) {
  const bool any_row = count > 0 && weight != kNoPart;
  const double loss = any_row ? sum / static_cast<double>(count) : 0.0;
  const A given = static_cast<A>(loss);
  static_cast<A*>(batch.sample_loss)[b] = given;
  const double balance = balance_pressure(batch.state);
  batch.pressure[b] = sample_pressure(batch.state, balance, given, any_row);
  return any_row ? weight * loss : 0.0;
}

// Stores the sum of a unit. Called by one thread. Returns true if this was the last unit.
__device__ inline bool leave(const LossBatch& batch, int64_t unit, double sum) {
  batch.partial[unit] = sum;
  return batch.units == 1 || is_last(batch.done, static_cast<unsigned>(batch.units));
}

// Called by every thread of the last block, with its part of the sum over all units.
template <typename A>
__device__ void finish_loss(const LossBatch& batch, double sum) {
  sum = block_reduce<Sum>(sum, 0.0);
  if (threadIdx.x == 0) {
    *static_cast<A*>(batch.loss) = static_cast<A>(sum / static_cast<double>(batch.samples));
  }
}

// Adds the stored sums at the places begin, begin + step, ….
__device__ inline double sum_left(const double* partial, int64_t begin, int64_t end, int64_t step) {
  double sum = 0;
#pragma unroll 4
  for (int64_t i = begin; i < end; i += step) sum += __ldcg(partial + i);
  return sum;
}

}  // namespace adapruner::cuda
