// Tensors of integers (ids, targets, segments, quotas) in a dtype that loops and kernels read.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/where.h>

#include <limits>

namespace adapruner {

// The same integers as int64, contiguous. Numbers of uint64 beyond int64 become its largest one,
// which is neither an index nor a label. They would turn negative otherwise, and −1 or an
// ignore_index has a meaning.
inline at::Tensor as_int64(const at::Tensor& integers) {
  // Asking torch for a conversion takes as long as the losses of a few rows, even where there is
  // nothing to do.
  if (integers.scalar_type() == at::kLong) return integers.contiguous();
  const at::Tensor result = integers.to(at::kLong).contiguous();
  if (integers.scalar_type() != at::kUInt64) return result;
  return at::where(at::lt(result, 0), std::numeric_limits<int64_t>::max(), result);
}

// The same integers, contiguous, in uint8, int8, int16, int32 or int64: uint16, uint32 and uint64
// as int64.
inline at::Tensor native_integers(const at::Tensor& integers) {
  return integers.scalar_type() <= at::kLong ? integers.contiguous() : as_int64(integers);
}

}  // namespace adapruner
