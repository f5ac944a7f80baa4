// Outputs and scratch tensors of a call of a loss operator, and the batch of plain pointers for its
// kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "context.h"
#include "cross_entropy_batch.h"
#include "cross_entropy_plan.h"
#include "integer_tensors.h"

namespace adapruner::cuda {

struct Losses {
  at::Tensor loss, sample_loss, pressure;
};

// The dtype of the losses of a tensor of this dtype.
inline at::ScalarType loss_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A launch has fewer than 2³¹ blocks.
inline void check_units(int64_t units) {
  TORCH_CHECK_VALUE(units < int64_t{1} << 31,
                    "a batch must need fewer than 2**31 blocks of threads on a GPU; found ", units);
}

// A call on B samples whose losses are computed in units.
class LossCall {
 public:
  LossCall(at::ScalarType type, const at::Tensor& ids, const at::Tensor& gate_logits,
           const at::Tensor& state)
      : ids_(native_integers(ids)), gate_logits_(gate_logits.contiguous()) {
    const int64_t samples = ids.size(0);
    const auto options = ids.options().dtype(type);
    losses = {at::empty({}, options), at::empty({samples}, options),
              at::empty({samples}, options.dtype(at::kFloat))};
    batch.samples = samples;
    batch.ids = integers_of(ids_);
    batch.gate_logits = gate_logits_.const_data_ptr<float>();
    batch.gates = gate_logits.size(0);
    batch.state = const_cast<int64_t*>(state.const_data_ptr<int64_t>());  // for errors only
    batch.loss = losses.loss.mutable_data_ptr();
    batch.sample_loss = losses.sample_loss.mutable_data_ptr();
    batch.pressure = losses.pressure.mutable_data_ptr<float>();
  }

  // prepared: rows are counted first.
  void allocate(int64_t units, bool prepared) {
    check_units(units);
    const int64_t counted = prepared ? batch.samples : 0;
    const int64_t rows = counted * static_cast<int64_t>(sizeof(SampleRows));
    const int64_t sums = units * static_cast<int64_t>(sizeof(double));
    scratch_ = at::empty({rows + sums + 8}, ids_.options().dtype(at::kByte));
    auto* at = scratch_.mutable_data_ptr<uint8_t>();
    batch.sample_rows = reinterpret_cast<SampleRows*>(at);
    batch.partial = reinterpret_cast<double*>(at + rows);
    batch.done = units == 1 ? nullptr : reinterpret_cast<unsigned*>(at + rows + sums);
    batch.units = units;
  }

  // The results if no kernel is launched: there are no samples, or no rows.
  Losses empty() {
    losses.loss.zero_();
    losses.sample_loss.zero_();
    losses.pressure.fill_(std::numeric_limits<float>::infinity());
    return losses;
  }

  Losses losses;
  CrossEntropyBatch batch{};

 private:
  at::Tensor ids_, gate_logits_, scratch_;
};

// A call of a cross entropy with R rows for each sample.
class CrossEntropyCall : public LossCall {
 public:
  CrossEntropyCall(at::ScalarType type, int64_t classes, const at::Tensor& target,
                   const at::Tensor& ids, const at::Tensor& gate_logits, const at::Tensor& state,
                   const std::optional<at::Tensor>& weight, int64_t ignore_index,
                   double label_smoothing)
      : LossCall(type, ids, gate_logits, state), target_(native_integers(target)) {
    constexpr int64_t kMostClasses = int64_t{1} << 30;
    TORCH_CHECK_VALUE(classes < kMostClasses,
                      "there must be fewer than 2**30 classes on a GPU; found ", classes);
    batch.rows = batch.samples == 0 ? 0 : target.numel() / batch.samples;
    batch.classes = classes;
    batch.target = integers_of(target_);
    batch.ignore_index = ignore_index;
    batch.unit_terms = row_terms(1.0, 0.0, label_smoothing, classes);
    batch.unit_scale = 1.0 / static_cast<double>(std::max<int64_t>(batch.samples, 1));
    if (!weight.has_value()) return;
    class_weight_ = weight->to(type).contiguous();
    batch.class_weight = class_weight_.const_data_ptr();
    if (label_smoothing == 0) return;
    total_weight_ = at::sum(class_weight_);
    batch.total_weight = total_weight_.const_data_ptr();
  }

 private:
  at::Tensor target_, class_weight_, total_weight_;
};

inline DeviceSize device_size(const Context& context) {
  int device = 0, shared = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return {context.multiprocessors, shared};
}

}  // namespace adapruner::cuda
