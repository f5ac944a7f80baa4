#pragma once

#include <cstdint>

namespace adapruner::cuda {

// The arrays of gate_update and gate_drift, all on the device.
struct GateArrays {
  float* m;          // [N]
  uint8_t* age;      // [N]
  int64_t* state;    // [kStateSize]
  float* last_loss;  // [N], or null
  int64_t size;      // N
};

}  // namespace adapruner::cuda
