// The dtypes of CUDA kernels, by names that need neither torch nor nvcc.
#pragma once

namespace adapruner::cuda {

enum class Type { kFloat, kDouble, kBFloat16, kHalf };

}  // namespace adapruner::cuda
