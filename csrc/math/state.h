// The state tensor: everything about a run's gates that is not per sample, on the gates' device, so
// that a new slope recompiles nothing and a captured graph sees it. int64 [kStateSize]; slots
// marked (f64) hold the bits of a double.
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
  kKeepRatio,       // (f64) r, the ratio wanted
  kBalance,         // (f64) C of λ = C + γ·|ρ − r|
  kBalanceGain,     // (f64) γ
  kEasyWeight,      // (f64) weight of −log(ℓ + ε) in the pressure; 1 as published
  kPressureCap,     // (f64) what a loss presses at most; +inf as published
  kStepSize,        // (f64) η
  kAgeCap,          // cap of a, the epochs since the last visit
  kResting,         // 1 in warm-up: every weight is 1 and gates do not step
  kPlain,           // 1: every weight is 1, while gates step as ever
  kLossScale,       // (f64) ℓ is divided by it in the pressure
  kScaleRunning,    // 1: the loss scale follows the mean loss of the epoch so far
  kLossSum,         // (f64) sum of the finite losses since the start of the epoch
  kLossCount,       // their number
  kNotFiniteCount,  // visits whose loss was not finite
  kNotFiniteIds,    // the first of their ids
  // What a device that cannot raise has found wrong: csrc/cuda/errors.h.
  kErrorKind = kNotFiniteIds + kNotFiniteCapacity,  // an ErrorKind
  kErrorPlace,  // in the batch: of a sample, or for targets of a row, counted over all samples
  kErrorValue,  // what was met there (negative losses: f64)
  kErrorLatch,  // an ErrorLatch
};
constexpr int kStateSize = kErrorLatch + 1;

// Of two in one call the lower kind is told, of one kind the lower place, as the CPU checks them.
enum ErrorKind : int64_t {
  kNoError = 0,
  kBadId = 1,         // no dataset index
  kBadTarget = 2,     // neither a class nor ignore_index
  kNegativeLoss = 3,  // a given loss below 0
};
enum ErrorLatch : int64_t { kErrorsOpen = 0, kErrorsHeld = 1, kErrorsSealed = 2 };

// Ages of a sample, in epochs since its last visit: 0 in this epoch, capped below kNeverVisited.
constexpr uint8_t kNeverVisited = 255;
constexpr uint8_t kOldest = 254;
constexpr int kAges = 256;

// Through an int64_t: nvcc would turn a memcpy from memory into eight loads of a byte each.
ADAPRUNER_HD inline double read_double(const int64_t* state, Slot slot) {
  return std::bit_cast<double>(state[slot]);
}

ADAPRUNER_HD inline void write_double(int64_t* state, Slot slot, double value) {
  state[slot] = std::bit_cast<int64_t>(value);
}

}  // namespace adapruner
