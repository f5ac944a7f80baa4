// Errors that kernels find in a batch (a label, an id, a loss). They are written into the state,
// and Gates.check_errors() raises them where the host waits for the device anyway. An assert on the
// device would destroy the whole context. If one call has several errors, the first is kept,
// whatever the order of the threads. gate_update ends every batch. It seals the error, so that
// later batches cannot change it.
#pragma once

#include <bit>

#include "../math/state.h"
#include "device.h"

namespace adapruner::cuda {

// True if an error comes before the one in the state. It is also called without the latch, while
// another thread may be writing. The place is written before the kind and read after it. So the
// answer is false only if it stays false.
__device__ inline bool comes_before(ErrorKind kind, int64_t place, const volatile int64_t* noted) {
  const int64_t noted_kind = noted[0];
  __threadfence();
  if (noted_kind == kNoError || kind < noted_kind) return true;
  return kind == noted_kind && place < noted[1];
}

// Writes an error into the state, if it comes before the one there. place and value are as in the
// slots of the state. The value of a loss is its bits. Operators that otherwise only read the state
// take it as `Tensor state`.
__device__ inline void note_error(int64_t* state, ErrorKind kind, int64_t place, int64_t value) {
  volatile int64_t* noted = state + kErrorKind;  // kind, place, value
  auto* latch = reinterpret_cast<unsigned long long*>(state + kErrorLatch);
  while (comes_before(kind, place, noted)) {
    const unsigned long long before = atomicCAS(latch, kErrorsOpen, kErrorsHeld);
    if (before == kErrorsSealed) return;
    if (before == kErrorsHeld) continue;  // held by another thread, for a short time
    __threadfence();
    if (comes_before(kind, place, noted)) {
      noted[1] = place;
      noted[2] = value;
      __threadfence();
      noted[0] = kind;
    }
    __threadfence();
    atomicExch(latch, kErrorsOpen);
    return;
  }
}

// Called by one thread, after the last note_error.
__device__ inline void seal_errors(int64_t* state) {
  if (state[kErrorKind] != kNoError) state[kErrorLatch] = kErrorsSealed;
}

}  // namespace adapruner::cuda
