#include "scale_gradient.cuh"
#include "scale_gradient.h"

namespace adapruner::cuda {

void scale_gradient(Type type, const void* gradient, void* out, int64_t n, const void* upstream,
                    int multiprocessors, cudaStream_t stream) {
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    scale_gradient<T>(static_cast<const T*>(gradient), static_cast<T*>(out), n,
                      static_cast<const Accumulator<T>*>(upstream), multiprocessors, stream);
  });
}

}  // namespace adapruner::cuda
