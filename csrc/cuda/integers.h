// A tensor of any integer dtype as kernels read it, so that none is copied to int64 first.
#pragma once

#include <cstdint>

#include "../math/platform.h"

namespace adapruner::cuda {

struct Integers {
  enum class Type { kByte, kChar, kShort, kInt, kLong };

  const void* data;
  Type type;

  ADAPRUNER_HD int64_t operator[](int64_t i) const {
    switch (type) {
      case Type::kByte:
        return static_cast<const uint8_t*>(data)[i];
      case Type::kChar:
        return static_cast<const int8_t*>(data)[i];
      case Type::kShort:
        return static_cast<const int16_t*>(data)[i];
      case Type::kInt:
        return static_cast<const int32_t*>(data)[i];
      default:
        return static_cast<const int64_t*>(data)[i];
    }
  }
};

}  // namespace adapruner::cuda
