#include "masked_cross_entropy.cuh"
#include "masked_cross_entropy.h"

namespace adapruner::cuda {

void begin_cross_entropy(const CrossEntropyBatch& batch, const CrossEntropyPlan& plan,
                         cudaStream_t stream) {
  prepare_cross_entropy(batch, plan, stream);
}

void cross_entropy_rows(Type type, const CrossEntropyBatch& batch, const CrossEntropyPlan& plan,
                        const CrossEntropyRows<void>& rows, int64_t begin, int64_t end,
                        cudaStream_t stream) {
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const CrossEntropyRows<T> typed{static_cast<const T*>(rows.logits),
                                    static_cast<T*>(rows.gradient), rows.logit_strides,
                                    rows.gradient_strides, rows.origin};
    cross_entropy_rows<T>(batch, plan, typed, begin, end, stream);
  });
}

}  // namespace adapruner::cuda
