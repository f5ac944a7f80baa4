// A gradient times a scalar that is on the device.
#pragma once

#include "device.h"

namespace adapruner::cuda {

constexpr int kScaleThreads = 256, kScaleUnroll = 4;

// P: packs of T. gradient and out are aligned to them. out may be gradient.
template <typename P, typename T>
__global__ void __launch_bounds__(kScaleThreads)
    scale_gradient_kernel(const T* gradient, T* out, int64_t n, const Accumulator<T>* upstream) {
  const Accumulator<T> factor = *upstream;
  if (factor == 1 && out == gradient) return;
  const int64_t packs = n / P::size;
  const int64_t per_block = kScaleThreads * kScaleUnroll;
  for (int64_t first = blockIdx.x * per_block + threadIdx.x; first < packs;
       first += gridDim.x * per_block) {
    P held[kScaleUnroll];
#pragma unroll
    for (int i = 0; i < kScaleUnroll; ++i) {
      const int64_t pack = first + i * kScaleThreads;
      if (pack < packs) held[i] = load_once<P>(gradient + pack * P::size);
    }
#pragma unroll
    for (int i = 0; i < kScaleUnroll; ++i) {
      const int64_t pack = first + i * kScaleThreads;
      if (pack >= packs) break;
#pragma unroll
      for (int j = 0; j < P::size; ++j) held[i][j] = narrow<T>(widen(held[i][j]) * factor);
      store(out + pack * P::size, held[i]);
    }
  }
  const int64_t rest = packs * P::size + threadIdx.x;
  if (blockIdx.x == 0 && rest < n) out[rest] = narrow<T>(widen(gradient[rest]) * factor);
}

template <typename T>
void scale_gradient(const T* gradient, T* out, int64_t n, const Accumulator<T>* upstream,
                    int multiprocessors, cudaStream_t stream) {
  const auto start = [&](auto pack) {
    using P = decltype(pack);
    launch_strided(scale_gradient_kernel<P, T>, ceil_div<int64_t>(n, P::size),
                   kScaleThreads * kScaleUnroll, multiprocessors, kScaleThreads, stream, gradient,
                   out, n, upstream);
  };
  if (is_aligned(gradient, 16) && is_aligned(out, 16)) {
    start(Pack<T>{});
  } else {
    start(Pack<T, 1>{});
  }
}

}  // namespace adapruner::cuda
