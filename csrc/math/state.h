// The state tensor. It holds everything about a run's gates that is not per sample. It is on the
// device of the gates, so that a new slope needs no recompilation and a captured graph sees it.
// int64 [kStateSize]. Slots marked (f64) hold the bits of a double.
#pragma once

#include <bit>
#include <cstdint>

#include "platform.h"

namespace adapruner {

constexpr int kNotFiniteCapacity = 48;

enum Slot : int {
  kSlope = 0,       // (f64) k, slope of the gates
  kGateSum,         // sum over the gates of gate_fixed(k, m)
  kOpenCount,       // number of gates with m > 0
  kPopulation,      // number of gates that s̄ and ρ are means over
  kKeepRatio,       // (f64) r, the keep ratio
  kBalance,         // (f64) C of λ = C + γ·|ρ − r|
  kBalanceGain,     // (f64) γ
  kEasyWeight,      // (f64) weight of −log(ℓ + ε) in the pressure; 1 as published
  kPressureCap,     // (f64) cap of the loss part of the pressure; +inf as published
  kStepSize,        // (f64) η
  kAgeCap,          // cap of a, the number of epochs that a visit stands for
  kResting,         // 1 in warm-up: every weight is 1, and gates stay as they are
  kPlain,           // 1: every weight is 1, and gates are updated as usual
  kLossScale,       // (f64) divisor of ℓ in the pressure
  kScaleRunning,    // 1: the loss scale follows the mean loss of the epoch so far
  kLossSum,         // (f64) sum of the finite losses of this epoch so far
  kLossCount,       // number of these losses
  kNotFiniteCount,  // number of visits whose loss was not finite
  kNotFiniteIds,    // the ids of the first of these visits
  // The first error that a kernel on a GPU has found: csrc/cuda/errors.h.
  kErrorKind = kNotFiniteIds + kNotFiniteCapacity,  // an ErrorKind
  kErrorPlace,  // place in the batch: of a sample, or of a row (targets)
  kErrorValue,  // the wrong value (negative losses: f64)
  kErrorLatch,  // an ErrorLatch
};
constexpr int kStateSize = kErrorLatch + 1;

// If one call has several errors, the one with the lowest kind is reported, and of one kind the one
// at the lowest place. The CPU checks in this order too.
enum ErrorKind : int64_t {
  kNoError = 0,
  kBadId = 1,         // an id that is not a dataset index
  kBadTarget = 2,     // a target that is neither a class nor ignore_index
  kNegativeLoss = 3,  // a given loss below 0
};
enum ErrorLatch : int64_t { kErrorsOpen = 0, kErrorsHeld = 1, kErrorsSealed = 2 };

// Age of a sample: the number of epochs since its last visit, 0 in the epoch of the visit. It is at
// most kOldest.
constexpr uint8_t kNeverVisited = 255;
constexpr uint8_t kOldest = 254;
constexpr int kAges = 256;

// The value goes through an int64_t, because nvcc would turn a memcpy from memory into eight loads
// of one byte.
ADAPRUNER_HD inline double read_double(const int64_t* state, Slot slot) {
  return std::bit_cast<double>(state[slot]);
}

ADAPRUNER_HD inline void write_double(int64_t* state, Slot slot, double value) {
  state[slot] = std::bit_cast<int64_t>(value);
}

}  // namespace adapruner
