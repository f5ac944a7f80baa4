// What a kernel finds wrong with a batch (a label, an id, a loss) is noted in the state, and raised
// by Gates.check_errors() where the host waits for the device anyway: an assert on the device would
// take the whole context with it. Of a call's offenders the first is told, whatever the order of
// the threads. gate_update, which ends every batch, seals what it finds, so that later batches add
// nothing.
#pragma once

#include <bit>

#include "../math/state.h"
#include "device.h"

namespace adapruner::cuda {

// Also asked without the latch, of what another thread is writing: the place is written before its
// kind and read after it, so that the answer is no only where it stays no.
__device__ inline bool comes_before(ErrorKind kind, int64_t place, const volatile int64_t* noted) {
  const int64_t noted_kind = noted[0];
  __threadfence();
  if (noted_kind == kNoError || kind < noted_kind) return true;
  return kind == noted_kind && place < noted[1];
}

// place, value: see the slots of the state; value of a loss: its bits. The state is `Tensor
// state` to operators that otherwise only read it.
__device__ inline void note_error(int64_t* state, ErrorKind kind, int64_t place, int64_t value) {
  volatile int64_t* noted = state + kErrorKind;  // kind, place, value
  auto* latch = reinterpret_cast<unsigned long long*>(state + kErrorLatch);
  while (comes_before(kind, place, noted)) {
    const unsigned long long before = atomicCAS(latch, kErrorsOpen, kErrorsHeld);
    if (before == kErrorsSealed) return;
    if (before == kErrorsHeld) continue;  // by another thread, and only for what follows
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

// By one thread, once no other notes any more.
__device__ inline void seal_errors(int64_t* state) {
  if (state[kErrorKind] != kNoError) state[kErrorLatch] = kErrorsSealed;
}

}  // namespace adapruner::cuda
