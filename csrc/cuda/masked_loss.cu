#include "masked_loss.cuh"
#include "masked_loss.h"

namespace adapruner::cuda {

void masked_loss(Type type, const LossBatch& batch, const void* sample_loss, void* gradient,
                 cudaStream_t stream) {
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    masked_loss<T>(batch, static_cast<const T*>(sample_loss),
                   static_cast<Accumulator<T>*>(gradient), stream);
  });
}

}  // namespace adapruner::cuda
