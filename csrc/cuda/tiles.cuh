// Tiles of values, which a block processes one at a time, and their bits in the order of a mask.
#pragma once

#include "scan.cuh"

namespace adapruner::cuda {

constexpr int kTileThreads = 256;
constexpr int kPerThread = 32;
constexpr int kTile = kTileThreads * kPerThread;
constexpr int kTileWords = kTile / 32;
constexpr int kWarpValues = kWarpSize * kPerThread;

// The values i … i + 3, where i is a multiple of 4. Values beyond n are 0.
__device__ inline Pack<float> load_four(const float* values, int64_t n, int64_t i) {
  if (i + 4 <= n) return load<Pack<float>>(values + i);
  Pack<float> x{};
  for (int j = 0; j < 3 && i + j < n; ++j) x[j] = values[i + j];
  return x;
}

// The 32 values of a tile that a thread holds. They are eight groups of four neighbours, and the
// groups of a warp lie side by side, so that every load reads 512 consecutive bytes. Bit 4·j + c of
// a word stands for values[j][c].
struct TileValues {
  static constexpr int kPacks = kPerThread / 4;
  Pack<float> values[kPacks];
  uint32_t valid;  // bits of the values that exist; the others are 0

  // Index in the tile of the value of a bit.
  __device__ static int offset(int bit) {
    return warp() * kWarpValues + (bit / 4) * (4 * kWarpSize) + 4 * lane() + bit % 4;
  }

  // x: aligned to 16 bytes.
  __device__ void load(const float* x, int64_t n, int64_t tile) {
    const int64_t first = tile * kTile + offset(0);
    if ((tile + 1) * kTile <= n) {
      valid = ~0u;
#pragma unroll
      for (int j = 0; j < kPacks; ++j) {
        values[j] = cuda::load<Pack<float>>(x + first + j * (4 * kWarpSize));
      }
      return;
    }
    valid = 0;
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int64_t i = first + j * (4 * kWarpSize) + c;
        values[j][c] = i < n ? x[i] : 0.0f;
        valid |= static_cast<uint32_t>(i < n) << (4 * j + c);
      }
    }
  }

  // The results of test(value) as bits, for the values that exist.
  template <typename Test>
  __device__ uint32_t word(const Test& test) const {
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (test(values[j][c])) bits |= 1u << (4 * j + c);
      }
    }
    return bits & valid;
  }
};

// The word of the tile's 256 words that this thread has after in_mask_order.
__device__ inline int tile_word() { return warp() * kWarpSize + (lane() % 8) * 4 + lane() / 8; }

// Reorders the bits of TileValues into the order of a mask. Eight lanes hold an 8 × 8 matrix of
// four bits each, which is transposed. Every lane of a warp calls it.
__device__ inline uint32_t in_mask_order(uint32_t word) {
  constexpr uint32_t kLow[] = {0x0f0f0f0fu, 0x00ff00ffu, 0x0000ffffu};
#pragma unroll
  for (int step = 2; step >= 0; --step) {
    const int apart = 1 << step, shift = 4 << step;
    const uint32_t other = __shfl_xor_sync(kFullWarp, word, apart);
    word = (lane() & apart) != 0 ? (word & ~kLow[step]) | (other >> shift & kLow[step])
                                 : (word & kLow[step]) | (other & kLow[step]) << shift;
  }
  return word;
}

}  // namespace adapruner::cuda
