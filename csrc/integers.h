// Tensors of integers (ids, targets, segments, quotas) in a dtype that loops and kernels can read.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/where.h>

#include <limits>

namespace adapruner {

// The same integers as contiguous int64. uint64 values beyond int64 become the largest int64, which
// is neither an index nor a label. Otherwise they would become negative, and −1 or a negative
// ignore_index has a meaning.
inline at::Tensor as_int64(const at::Tensor& integers) {
  // A conversion in torch takes as long as the losses of a few rows, even if there is nothing to
  // convert.
  if (integers.scalar_type() == at::kLong) return integers.contiguous();
  const at::Tensor result = integers.to(at::kLong).contiguous();
  if (integers.scalar_type() != at::kUInt64) return result;
  return at::where(at::lt(result, 0), std::numeric_limits<int64_t>::max(), result);
}

// The same integers, contiguous, as uint8, int8, int16, int32 or int64. uint16, uint32 and uint64
// become int64.
inline at::Tensor native_integers(const at::Tensor& integers) {
  return integers.scalar_type() <= at::kLong ? integers.contiguous() : as_int64(integers);
}

}  // namespace adapruner
