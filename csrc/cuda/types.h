// The dtypes of CUDA kernels, for code without torch and nvcc.
#pragma once

namespace adapruner::cuda {

enum class Type { kFloat, kDouble, kBFloat16, kHalf };

}  // namespace adapruner::cuda
