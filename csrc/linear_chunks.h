// How the rows of masked_linear_cross_entropy are cut into chunks.
#pragma once

#include <algorithm>
#include <cstdint>

namespace adapruner {

// Rows of a chunk: their logits take at most `bytes`, or `least` rows where these take more; no
// small chunk at the end. 0 for no rows.
inline int64_t chunk_rows(int64_t rows, int64_t row_bytes, int64_t bytes, int64_t least) {
  const int64_t most = std::max(bytes / row_bytes, least);
  const int64_t chunks = (rows + most - 1) / most;
  return chunks == 0 ? 0 : (rows + chunks - 1) / chunks;
}

}  // namespace adapruner
