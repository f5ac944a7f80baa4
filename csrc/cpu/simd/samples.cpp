#include "samples.h"

#include "../../math/gate.h"

namespace adapruner::ADAPRUNER_ISA {

void sample_weights(const int64_t* state, const float* gate_logits, const int64_t* ids, int64_t n,
                    double* weights) {
  if (weights_are_one(state)) {
    for (int64_t i = 0; i < n; ++i) weights[i] = 1.0;
    return;
  }
  const double slope = read_double(state, kSlope);
  // Two loops, so that the second one vectorises.
  for (int64_t i = 0; i < n; ++i) weights[i] = gate_logits[ids[i]];
  for (int64_t i = 0; i < n; ++i) weights[i] = gate(slope, weights[i]);
}

void sample_losses(const SampleLosses& work, int64_t n) {
  const int64_t* counts = work.counts;
  double* losses = work.losses;
  float* pressures = work.pressures;
  for (int64_t i = 0; i < n; ++i) {
    const double loss = work.sums[i] / static_cast<double>(counts[i] == 0 ? 1 : counts[i]);
    losses[i] = counts[i] == 0 ? 0.0 : loss;
    const double given = work.single ? static_cast<double>(static_cast<float>(loss)) : loss;
    pressures[i] = sample_pressure(work.state, work.balance, given, counts[i] != 0);
  }
}

}  // namespace adapruner::ADAPRUNER_ISA
