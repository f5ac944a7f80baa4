// How masked_linear_cross_entropy cuts its rows into chunks.
#pragma once

#include <algorithm>
#include <cstdint>

namespace adapruner {

// Number of rows in a chunk. The logits of a chunk take at most `bytes`, or have `least` rows if
// these take more. All chunks have about the same size. 0 if there are no rows.
inline int64_t chunk_rows(int64_t rows, int64_t row_bytes, int64_t bytes, int64_t least) {
  const int64_t most = std::max(bytes / row_bytes, least);
  const int64_t chunks = (rows + most - 1) / most;
  return chunks == 0 ? 0 : (rows + chunks - 1) / chunks;
}

}  // namespace adapruner
