// One visit of each distinct id of a batch, and the update of the gates that an epoch did not
// visit.
//
// Batch: block 0 sums the losses and lists the visits that are not finite. The other blocks share
// the ids by a hash, so that no two of them write the same gate or wait for one another. Each of
// them goes through the whole batch in order, adds up the pressures of its own ids in a table, and
// updates their gates. The pressures of an id are added in batch order, and all other sums are sums
// of integers. So the results have the same bits as the CPU's, whatever the order of blocks and
// threads.
#pragma once

#include "../math/gate.h"
#include "../math/permutation.h"
#include "device.h"
#include "errors.h"
#include "gate_arrays.h"

namespace adapruner::cuda {

constexpr int kUpdateThreads = 1024;  // tests use fewer (kThreads)
constexpr int kTableSlots = 1024;
constexpr int kExpectedIds = 256;  // in a table, so that second probes are rare
constexpr int kMostProbes = 128;
constexpr unsigned long long kNoId = ~0ull;

template <typename Real>
struct GateBatch {
  const int64_t* ids;
  const Real* pressure;
  const Real* loss;
  int64_t size;

  struct Visit {
    int64_t id;
    double pressure;
  };

  // The id is −1 beyond the end.
  __device__ Visit visit(int64_t b) const {
    return b < size ? Visit{ids[b], static_cast<double>(pressure[b])} : Visit{-1, 0.0};
  }
};

// --- the batch as a whole --------------------------------------------------------------------

// Adds the losses of a tile to the lanes of csrc/math/gate.h. Thread i of the first kLossLanes has
// the sum of lane i. Every thread calls it with its loss.
template <int kThreads>
__device__ void add_to_lanes(double& lane_sum, double loss) {
  static_assert(kLossLanes == kWarpSize && kThreads % kLossLanes == 0);
  __shared__ double losses[kThreads];
  losses[threadIdx.x] = loss;
  __syncthreads();
  if (threadIdx.x < kLossLanes) {
    for (int i = threadIdx.x; i < kThreads; i += kLossLanes) lane_sum += losses[i];
  }
  __syncthreads();
}

// The sum of all lanes, by the first warp. Thread 0 gets it.
__device__ inline double sum_of_lanes(double lane_sum) {
  for (int half = kLossLanes / 2; half > 0; half /= 2) {
    lane_sum += __shfl_down_sync(kFullWarp, lane_sum, half);
  }
  return lane_sum;
}

// Lists the ids of a tile's `count` visits that were not finite, in batch order, until the list is
// full.
__device__ inline void note_not_finite(int64_t* state, const int64_t* ids, const bool* not_finite,
                                       int count) {
  int64_t noted = state[kNotFiniteCount];
  state[kNotFiniteCount] = noted + count;
  for (int i = 0; count > 0 && noted >= 0 && noted < kNotFiniteCapacity; ++i) {
    if (!not_finite[i]) continue;
    state[kNotFiniteIds + noted++] = ids[i];
    --count;
  }
}

__device__ inline void note_losses(int64_t* state, double sum, int64_t count) {
  sum += read_double(state, kLossSum);
  count += state[kLossCount];
  write_double(state, kLossSum, sum);
  state[kLossCount] = count;
  if (state[kScaleRunning] && sum > 0) {
    write_double(state, kLossScale, sum / static_cast<double>(count));
  }
}

template <int kThreads, typename Real>
__device__ void note_batch(const GateBatch<Real>& batch, const GateArrays& gates) {
  __shared__ bool not_finite[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  double lane_sum = 0;
  int64_t count = 0;
  for (int64_t begin = 0; begin < batch.size; begin += kThreads) {
    const int64_t b = begin + thread;
    const auto visit = batch.visit(b);
    const bool known = visit.id >= 0 && visit.id < gates.size;
    if (b < batch.size && !known) note_error(gates.state, kBadId, b, visit.id);
    const double loss = known ? static_cast<double>(batch.loss[b]) : 0.0;
    const bool counted = known && fabs(visit.pressure) != INFINITY && is_finite(loss);
    not_finite[thread] = known && visit.pressure != visit.pressure;
    count += __syncthreads_count(counted);
    const int faults = __syncthreads_count(not_finite[thread]);
    if (thread == 0 && faults > 0) {
      note_not_finite(gates.state, batch.ids + begin, not_finite, faults);
    }
    add_to_lanes<kThreads>(lane_sum, counted ? loss : 0.0);
  }
  if (warp() == 0) lane_sum = sum_of_lanes(lane_sum);
  if (thread == 0) {
    note_losses(gates.state, lane_sum, count);
    seal_errors(gates.state);
  }
}

// --- a share of its ids ----------------------------------------------------------------------

// The ids whose hash starts with the `length` bits of `prefix`.
struct Share {
  uint64_t prefix;
  int length;

  __device__ bool holds(uint64_t hash) const { return hash >> (64 - length) == prefix; }
};

template <int kThreads>
struct VisitTable {
  unsigned long long ids[kTableSlots];
  double pressure[kTableSlots];  // sum of the finite pressures
  long long last[kTableSlots];   // place in the batch of the last visit with a loss; −1: none
  int turn[kTableSlots];         // thread that adds its pressure next
  bool finite[kTableSlots];      // true if any pressure was finite
  int used[kTableSlots];         // slots, in any order
  int count;

  __device__ void clear() {
    for (int slot = threadIdx.x; slot < kTableSlots; slot += kThreads) {
      ids[slot] = kNoId;
      pressure[slot] = -0.0;  // changes nothing that is added to it
      last[slot] = -1;
      turn[slot] = kThreads;
      finite[slot] = false;
    }
    if (threadIdx.x == 0) count = 0;
  }

  // The slot of an id, which may be new, or −1 if there is no slot for it.
  __device__ int find(int64_t id, uint64_t hash) {
    const auto wanted = static_cast<unsigned long long>(id);
    for (int probe = 0; probe < kMostProbes; ++probe) {
      const int slot = static_cast<int>((hash + probe) % kTableSlots);
      const unsigned long long held = atomicCAS(ids + slot, kNoId, wanted);
      if (held == kNoId) used[atomicAdd(&count, 1)] = slot;
      if (held == kNoId || held == wanted) return slot;
    }
    return -1;
  }

  // Adds the pressures of all threads of a block. For each slot, they are added in the order of the
  // threads.
  __device__ void add(int slot, double value, bool pending) {
    const int thread = static_cast<int>(threadIdx.x);
    for (bool more = true; more;) {
      if (pending) atomicMin(turn + slot, thread);
      __syncthreads();
      const bool mine = pending && turn[slot] == thread;
      more = __syncthreads_or(pending && !mine);
      if (mine) {
        pressure[slot] += value;
        finite[slot] = true;
        turn[slot] = kThreads;
        pending = false;
      }
      if (more) __syncthreads();
    }
  }
};

// Fills the table with a share of the batch. Returns false if the table has no room for all ids.
template <int kThreads, typename Real>
__device__ bool gather(VisitTable<kThreads>& table, const GateBatch<Real>& batch, int64_t gates,
                       const Share& share) {
  auto next = batch.visit(threadIdx.x);
  for (int64_t begin = 0; begin < batch.size; begin += kThreads) {
    const int64_t b = begin + threadIdx.x;
    const auto visit = next;
    next = batch.visit(b + kThreads);  // loads while this tile is processed
    const uint64_t hash = mixed(static_cast<uint64_t>(visit.id));
    const bool own = visit.id >= 0 && visit.id < gates && share.holds(hash);
    const int slot = own ? table.find(visit.id, hash) : -1;
    if (__syncthreads_or(own && slot < 0)) return false;
    if (own && fabs(visit.pressure) != INFINITY) {
      atomicMax(table.last + slot, static_cast<long long>(b));
    }
    table.add(slot, visit.pressure, own && is_finite(visit.pressure));
  }
  return true;
}

// Visits the gates of all ids in the table. Adds the changes of the gate sum and the open count to
// `fixed` and `open`.
template <int kThreads, typename Real>
__device__ void visit_gates(const VisitTable<kThreads>& table, const Real* loss,
                            const GateArrays& gates, int64_t& fixed, int64_t& open) {
  const int64_t* state = gates.state;
  const double slope = read_double(state, kSlope);
  const bool resting = state[kResting] != 0;
  for (int i = threadIdx.x; i < table.count; i += kThreads) {
    const int slot = table.used[i];
    const auto id = static_cast<int64_t>(table.ids[slot]);
    if (gates.last_loss != nullptr && table.last[slot] >= 0) {
      gates.last_loss[id] = static_cast<float>(loss[table.last[slot]]);
    }
    if (resting) continue;
    const uint8_t age = gates.age[id];
    if (table.finite[slot]) {
      const float before = gates.m[id];
      const float after = stepped(state, before, age, table.pressure[slot]);
      fixed += gate_fixed(slope, after) - gate_fixed(slope, before);
      open += (after > 0) - (before > 0);
      gates.m[id] = after;
      gates.age[id] = 0;
    } else if (age == kNeverVisited) {
      gates.age[id] = 1;
    }
  }
}

template <int kThreads, typename Real>
__device__ void visit_share(const GateBatch<Real>& batch, const GateArrays& gates, Share share) {
  __shared__ VisitTable<kThreads> table;
  int64_t fixed = 0, open = 0;
  // If the table is too small for a share, the share is cut in two, and so are those that follow.
  const int length = share.length;
  const uint64_t next = share.prefix + 1;
  while (share.prefix < next << (share.length - length)) {
    __syncthreads();
    table.clear();
    __syncthreads();
    if (!gather(table, batch, gates.size, share)) {
      share = {share.prefix * 2, share.length + 1};
      continue;
    }
    __syncthreads();
    visit_gates(table, batch.loss, gates, fixed, open);
    ++share.prefix;
  }
  fixed = block_reduce<Sum>(fixed, int64_t{0});
  open = block_reduce<Sum>(open, int64_t{0});
  if (threadIdx.x == 0) {
    atomic_add(gates.state + kGateSum, fixed);
    atomic_add(gates.state + kOpenCount, open);
  }
}

// Launched with 1 + 2^share_bits blocks.
template <int kThreads, typename Real>
__global__ void __launch_bounds__(kThreads)
    gate_update_kernel(GateBatch<Real> batch, GateArrays gates, int share_bits) {
  if (blockIdx.x == 0) {
    note_batch<kThreads>(batch, gates);
  } else {
    visit_share<kThreads>(batch, gates, Share{blockIdx.x - 1, share_bits});
  }
}

// The ids of a share are expected to fill a quarter of a table. At least one bit, so that a hash is
// never shifted by 64.
constexpr int share_bits(int64_t batch) {
  int bits = 1;
  while (int64_t{kExpectedIds} << bits < batch) ++bits;
  return bits;
}

template <int kThreads = kUpdateThreads, typename Real>
void gate_update(const GateBatch<Real>& batch, const GateArrays& gates, cudaStream_t stream) {
  if (batch.size == 0) return;
  const int bits = share_bits(batch.size);
  launch(gate_update_kernel<kThreads, Real>, dim3(1 + (1u << bits)), dim3(kThreads), 0, stream,
         batch, gates, bits);
}

// --- the first batch of an epoch whose losses are brought to a scale ---------------------------

// Launched with one block.
template <int kThreads, typename Real>
__global__ void __launch_bounds__(kThreads)
    first_loss_scale_kernel(float* pressure, const Real* loss, int64_t batch, int64_t* state) {
  __shared__ bool found;
  if (state[kScaleRunning] == 0 || state[kLossCount] != 0) return;
  const auto takes_part = [&](int64_t b) { return fabsf(pressure[b]) != INFINITY; };
  double sum = 0;
  int64_t count = 0;
  for (int64_t begin = 0; begin < batch; begin += kThreads) {
    const int64_t b = begin + threadIdx.x;
    const double of_sample = b < batch && takes_part(b) ? loss[b] : INFINITY;
    const bool counted = is_finite(of_sample);
    add_to_lanes<kThreads>(sum, counted ? of_sample : 0.0);
    count += __syncthreads_count(counted);
  }
  if (warp() == 0) sum = sum_of_lanes(sum);
  if (threadIdx.x == 0) {
    found = sum > 0;
    if (found) write_double(state, kLossScale, sum / static_cast<double>(count));
  }
  __syncthreads();
  if (!found) return;
  const double balance = balance_pressure(state);
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) {
    if (takes_part(b)) pressure[b] = sample_pressure(state, balance, loss[b], true);
  }
}

template <int kThreads = kUpdateThreads, typename Real>
void first_loss_scale(float* pressure, const Real* loss, int64_t batch, int64_t* state,
                      cudaStream_t stream) {
  launch(first_loss_scale_kernel<kThreads, Real>, 1, kThreads, 0, stream, pressure, loss, batch,
         state);
}

// --- the gates that an epoch did not visit ---------------------------------------------------

constexpr int kDriftThreads = 256;

__global__ void __launch_bounds__(kDriftThreads) gate_drift_kernel(GateArrays gates) {
  const int64_t* state = gates.state;
  if (state[kResting]) return;
  const double balance = balance_pressure(state);
  for (int64_t i = int64_t{blockIdx.x} * kDriftThreads + threadIdx.x; i < gates.size;
       i += int64_t{gridDim.x} * kDriftThreads) {
    const uint8_t age = gates.age[i];
    if (age == 0 || age == kNeverVisited) continue;
    const float loss = gates.last_loss[i];
    if (!is_finite(loss)) continue;
    gates.m[i] = stepped(state, gates.m[i], 0, pressure(state, balance, loss));
  }
}

void gate_drift(const GateArrays& gates, int multiprocessors, cudaStream_t stream) {
  launch_strided(gate_drift_kernel, gates.size, kDriftThreads, multiprocessors, kDriftThreads,
                 stream, gates);
}

}  // namespace adapruner::cuda
