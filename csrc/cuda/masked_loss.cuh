// Given losses, one for each sample: their weights, their pressures, and the loss of the batch.
#pragma once

#include "loss_batch.cuh"

namespace adapruner::cuda {

template <typename T>
__global__ void __launch_bounds__(kLossThreads, 1)
    masked_loss_kernel(LossBatch batch, const T* sample_loss, Accumulator<T>* gradient) {
  using A = Accumulator<T>;
  __shared__ bool last;
  const int64_t b = blockIdx.x * int64_t{kLossThreads} + threadIdx.x;
  double part = 0;
  if (b < batch.samples) {
    constexpr double kRounding = std::is_same_v<T, __half>          ? kFloat16LossRounding
                                 : std::is_same_v<T, __nv_bfloat16> ? kBFloat16LossRounding
                                                                    : kLossRounding;
    const double loss = without_rounding(widen(sample_loss[b]), kRounding);
    double weight = weight_of(batch, b);
    bool takes_part = weight != kNoPart;
    if (takes_part && loss < 0) {
      note_error(batch.state, kNegativeLoss, b, std::bit_cast<int64_t>(loss));
      takes_part = false;
    }
    if (!takes_part) weight = 0;
    batch.pressure[b] = sample_pressure(batch.state, balance_pressure(batch.state),
                                        takes_part ? loss : 0.0, takes_part);
    gradient[b] = static_cast<A>(weight / static_cast<double>(batch.samples));
    part = takes_part ? weight * loss : 0.0;
  }
  part = block_reduce<Sum>(part, 0.0);
  if (threadIdx.x == 0) last = leave(batch, blockIdx.x, part);
  __syncthreads();
  if (last) {
    finish_loss<A>(batch, sum_left(batch.partial, threadIdx.x, batch.units, kLossThreads));
  }
}

template <typename T>
void masked_loss(const LossBatch& batch, const T* sample_loss, Accumulator<T>* gradient,
                 cudaStream_t stream) {
  if (batch.done != nullptr) check(cudaMemsetAsync(batch.done, 0, sizeof *batch.done, stream));
  launch(masked_loss_kernel<T>, static_cast<unsigned>(batch.units), kLossThreads, 0, stream, batch,
         sample_loss, gradient);
}

}  // namespace adapruner::cuda
