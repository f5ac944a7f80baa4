// Integers that kernels read in their own dtype, so that no copy as int64 is needed.
#pragma once

#include <cstdint>

#include "../math/platform.h"

namespace adapruner::cuda {

struct Integers {
  enum class Type { kUint8, kInt8, kInt16, kInt32, kInt64 };

  const void* data;
  Type type;

  // Calls read(p), where p is `data` as a pointer to its type.
  template <typename Read>
  ADAPRUNER_HD auto as_typed(const Read& read) const {
    switch (type) {
      case Type::kUint8:
        return read(static_cast<const uint8_t*>(data));
      case Type::kInt8:
        return read(static_cast<const int8_t*>(data));
      case Type::kInt16:
        return read(static_cast<const int16_t*>(data));
      case Type::kInt32:
        return read(static_cast<const int32_t*>(data));
      default:
        return read(static_cast<const int64_t*>(data));
    }
  }

  ADAPRUNER_HD int64_t operator[](int64_t i) const {
    return as_typed([i](auto* p) { return static_cast<int64_t>(p[i]); });
  }
};

}  // namespace adapruner::cuda
