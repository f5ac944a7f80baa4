// Argument checks of the operators, the same for every device. Values that are on the device
// (labels, ids) are checked by the code of that device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>

#include "math/state.h"
#include "math/topk.h"

namespace adapruner {

inline void check_integers(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_TYPE(at::isIntegralType(tensor.scalar_type(), /*includeBool=*/false), name,
                   " must hold integers; found ", tensor.scalar_type());
}

inline void check_floats(const at::Tensor& tensor, const char* name) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, name,
      " must be float32, float64, bfloat16 or float16; found ", type);
}

inline void check_device(const at::Tensor& tensor, const at::Tensor& like, const char* name) {
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " must be on ", like.device(),
                    ", the device of the first argument; found ", tensor.device());
}

inline void check_gate_logits(const at::Tensor& gate_logits) {
  TORCH_CHECK_TYPE(gate_logits.scalar_type() == at::kFloat, "gate_logits must be float32; found ",
                   gate_logits.scalar_type());
  TORCH_CHECK_VALUE(gate_logits.dim() == 1, "gate_logits must have one dimension [N]; found shape ",
                    gate_logits.sizes());
}

inline void check_state(const at::Tensor& state) {
  TORCH_CHECK_TYPE(state.scalar_type() == at::kLong, "state must be int64; found ",
                   state.scalar_type());
  TORCH_CHECK_VALUE(state.dim() == 1 && state.size(0) == kStateSize && state.is_contiguous(),
                    "state must be contiguous and have shape [", kStateSize, "]; found shape ",
                    state.sizes(), " and strides ", state.strides());
}

// Checks ids [B], gate_logits [N] and state of an operator on a batch.
inline void check_gates(const at::Tensor& ids, int64_t batch, const at::Tensor& gate_logits,
                        const at::Tensor& state) {
  check_integers(ids, "ids");
  TORCH_CHECK_VALUE(ids.dim() == 1 && ids.size(0) == batch, "ids must have shape [", batch,
                    "], one dataset index per sample of the batch; found shape ", ids.sizes());
  check_gate_logits(gate_logits);
  check_state(state);
}

// Checks the arguments of a cross entropy other than its first one, `like`. The targets must have
// shape `expected`, which messages call the shape of `without`.
inline void check_labels(const at::Tensor& target, at::IntArrayRef expected, const char* without,
                         const at::Tensor& like, int64_t classes, const at::Tensor& ids,
                         const at::Tensor& gate_logits, const at::Tensor& state,
                         const std::optional<at::Tensor>& weight, double label_smoothing) {
  check_integers(target, "target");
  TORCH_CHECK_VALUE(target.sizes() == expected, "target must have shape ", expected,
                    ", the shape of ", without, "; found shape ", target.sizes());
  check_gates(ids, expected[0], gate_logits, state);
  TORCH_CHECK_VALUE(label_smoothing >= 0 && label_smoothing <= 1,
                    "label_smoothing must be in [0, 1]; found ", label_smoothing);
  for (const auto& [tensor, name] : {std::pair{&target, "target"},
                                     {&ids, "ids"},
                                     {&gate_logits, "gate_logits"},
                                     {&state, "state"}}) {
    check_device(*tensor, like, name);
  }
  if (weight.has_value()) {
    check_floats(*weight, "weight");
    TORCH_CHECK_VALUE(weight->dim() == 1 && weight->size(0) == classes, "weight must have shape [",
                      classes, "], one per class; found shape ", weight->sizes());
    check_device(*weight, like, "weight");
    if (weight->is_cpu()) {  // a look at the values of a GPU would wait for it
      const double least = weight->min().item<double>();
      TORCH_CHECK_VALUE(least >= 0, "weight must be at least 0; found ", least);
    }
  }
}

inline void check_cross_entropy(const at::Tensor& logits, const at::Tensor& target,
                                const at::Tensor& ids, const at::Tensor& gate_logits,
                                const at::Tensor& state, const std::optional<at::Tensor>& weight,
                                double label_smoothing) {
  check_floats(logits, "logits");
  TORCH_CHECK_VALUE(logits.dim() >= 2, "logits must have shape [B, C] or [B, C, ...]; found shape ",
                    logits.sizes());
  TORCH_CHECK_VALUE(logits.size(1) >= 1,
                    "logits must have at least one class in dimension 1; found shape ",
                    logits.sizes());
  auto expected = logits.sizes().vec();
  expected.erase(expected.begin() + 1);
  check_labels(target, expected, "logits without its classes", logits, logits.size(1), ids,
               gate_logits, state, weight, label_smoothing);
}

inline void check_same_type(const at::Tensor& tensor, const at::Tensor& like, const char* name) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name,
                   " must have the dtype of input, ", like.scalar_type(), "; found ",
                   tensor.scalar_type());
}

inline void check_linear_cross_entropy(const at::Tensor& input, const at::Tensor& linear_weight,
                                       const std::optional<at::Tensor>& linear_bias,
                                       const at::Tensor& target, const at::Tensor& ids,
                                       const at::Tensor& gate_logits, const at::Tensor& state,
                                       const std::optional<at::Tensor>& weight,
                                       double label_smoothing) {
  check_floats(input, "input");
  TORCH_CHECK_VALUE(input.dim() >= 2, "input must have shape [B, H] or [B, ..., H]; found shape ",
                    input.sizes());
  check_same_type(linear_weight, input, "linear_weight");
  check_device(linear_weight, input, "linear_weight");
  TORCH_CHECK_VALUE(linear_weight.dim() == 2 && linear_weight.size(0) >= 1 &&
                        linear_weight.size(1) == input.size(-1),
                    "linear_weight must have shape [C, ", input.size(-1),
                    "], at least one class and the features of input; found shape ",
                    linear_weight.sizes());
  const int64_t classes = linear_weight.size(0);
  if (linear_bias.has_value()) {
    check_same_type(*linear_bias, input, "linear_bias");
    check_device(*linear_bias, input, "linear_bias");
    TORCH_CHECK_VALUE(linear_bias->dim() == 1 && linear_bias->size(0) == classes,
                      "linear_bias must have shape [", classes, "], one per class; found shape ",
                      linear_bias->sizes());
  }
  check_labels(target, input.sizes().slice(0, input.dim() - 1), "input without its features", input,
               classes, ids, gate_logits, state, weight, label_smoothing);
}

inline void check_masked_loss(const at::Tensor& sample_loss, const at::Tensor& ids,
                              const at::Tensor& gate_logits, const at::Tensor& state) {
  check_floats(sample_loss, "sample_loss");
  TORCH_CHECK_VALUE(sample_loss.dim() == 1,
                    "sample_loss must have one dimension [B], one loss per sample "
                    "(reduction=\"none\", and the mean over the rows of a sample); found shape ",
                    sample_loss.sizes());
  check_gates(ids, sample_loss.size(0), gate_logits, state);
  check_device(ids, sample_loss, "ids");
  check_device(gate_logits, sample_loss, "gate_logits");
  check_device(state, sample_loss, "state");
}

inline void check_age(const at::Tensor& gate_logits, const at::Tensor& age) {
  TORCH_CHECK_TYPE(age.scalar_type() == at::kByte, "age must be uint8; found ", age.scalar_type());
  TORCH_CHECK_VALUE(age.sizes() == gate_logits.sizes(), "age must have the shape of gate_logits, ",
                    gate_logits.sizes(), "; found shape ", age.sizes());
  check_device(age, gate_logits, "age");
}

// Checks age [N] for operators that update the gates in place.
inline void check_age_in_place(const at::Tensor& gate_logits, const at::Tensor& age) {
  check_age(gate_logits, age);
  for (const auto& [tensor, name] : {std::pair{&gate_logits, "gate_logits"}, {&age, "age"}}) {
    TORCH_CHECK_VALUE(tensor->is_contiguous(), name,
                      " must be contiguous, because it is updated in place; found strides ",
                      tensor->strides());
  }
}

inline void check_last_loss(const at::Tensor& gate_logits, const at::Tensor& last_loss) {
  TORCH_CHECK_TYPE(last_loss.scalar_type() == at::kFloat, "last_loss must be float32; found ",
                   last_loss.scalar_type());
  TORCH_CHECK_VALUE(last_loss.sizes() == gate_logits.sizes() && last_loss.is_contiguous(),
                    "last_loss must be contiguous and have the shape of gate_logits, ",
                    gate_logits.sizes(), "; found shape ", last_loss.sizes(), " and strides ",
                    last_loss.strides());
  check_device(last_loss, gate_logits, "last_loss");
}

inline void check_gate_drift(const at::Tensor& gate_logits, const at::Tensor& age,
                             const at::Tensor& state, const at::Tensor& last_loss) {
  check_gate_logits(gate_logits);
  check_age_in_place(gate_logits, age);
  check_state(state);
  check_device(state, gate_logits, "state");
  check_last_loss(gate_logits, last_loss);
}

inline void check_gate_update(const at::Tensor& gate_logits, const at::Tensor& age,
                              const at::Tensor& state, const std::optional<at::Tensor>& last_loss,
                              const at::Tensor& ids, const at::Tensor& pressure,
                              const at::Tensor& sample_loss) {
  check_floats(pressure, "pressure");
  TORCH_CHECK_VALUE(pressure.dim() == 1, "pressure must have one dimension [B]; found shape ",
                    pressure.sizes());
  check_gates(ids, pressure.size(0), gate_logits, state);
  check_floats(sample_loss, "sample_loss");
  TORCH_CHECK_VALUE(sample_loss.sizes() == pressure.sizes(),
                    "sample_loss must have the shape of pressure, ", pressure.sizes(),
                    "; found shape ", sample_loss.sizes());
  check_age_in_place(gate_logits, age);
  check_device(state, gate_logits, "state");
  check_device(ids, gate_logits, "ids");
  check_device(pressure, gate_logits, "pressure");
  check_device(sample_loss, gate_logits, "sample_loss");
  if (last_loss.has_value()) check_last_loss(gate_logits, *last_loss);
}

inline void check_first_loss_scale(const at::Tensor& pressure, const at::Tensor& state,
                                   const at::Tensor& sample_loss) {
  TORCH_CHECK_TYPE(pressure.scalar_type() == at::kFloat, "pressure must be float32; found ",
                   pressure.scalar_type());
  TORCH_CHECK_VALUE(
      pressure.dim() == 1 && pressure.is_contiguous(),
      "pressure must be contiguous, because it is updated in place, and have shape [B]; "
      "found shape ",
      pressure.sizes(), " and strides ", pressure.strides());
  check_state(state);
  check_device(state, pressure, "state");
  check_floats(sample_loss, "sample_loss");
  TORCH_CHECK_VALUE(sample_loss.sizes() == pressure.sizes(),
                    "sample_loss must have the shape of pressure, ", pressure.sizes(),
                    "; found shape ", sample_loss.sizes());
  check_device(sample_loss, pressure, "sample_loss");
}

inline void check_slope(const std::optional<double>& slope) {
  TORCH_CHECK_VALUE(!slope || std::isfinite(*slope), "slope must be a finite number; found ",
                    *slope);
}

inline void check_topk(const at::Tensor& gate_logits, int64_t k,
                       const std::optional<double>& slope) {
  check_gate_logits(gate_logits);
  check_slope(slope);
  TORCH_CHECK_VALUE(k >= 0 && k <= gate_logits.size(0), "k must be in [0, ", gate_logits.size(0),
                    "], the number of gates; found ", k);
}

// Errors in values that kernels have found. An index of −1 means no error.
inline void check_no_nan(int64_t first_nan) {
  TORCH_CHECK_VALUE(first_nan < 0, "gate_logits[", first_nan, "] must be a number; found NaN");
}

[[noreturn]] inline void refuse_segment(int64_t index, int64_t segment, int64_t count) {
  TORCH_CHECK_VALUE(false, "segments[", index, "] must be a segment in [0, ", count,
                    "), or -1 for none; found ", segment);
}

[[noreturn]] inline void refuse_quota(int64_t segment, int64_t quota, int64_t size) {
  TORCH_CHECK_VALUE(false, "quotas[", segment, "] must be in [0, ", size,
                    "], the number of values in segment ", segment, "; found ", quota);
}

// Row numbers and slots of histograms must fit 32 bits.
constexpr int64_t kMostSegments = int64_t{1} << 30;

inline void check_segmented_topk(const at::Tensor& gate_logits, const at::Tensor& segments,
                                 const at::Tensor& quotas, const std::optional<double>& slope) {
  check_gate_logits(gate_logits);
  check_slope(slope);
  check_integers(segments, "segments");
  TORCH_CHECK_VALUE(segments.sizes() == gate_logits.sizes(),
                    "segments must have the shape of gate_logits, ", gate_logits.sizes(),
                    "; found shape ", segments.sizes());
  check_device(segments, gate_logits, "segments");
  check_integers(quotas, "quotas");
  if (!quotas.is_cpu()) check_device(quotas, gate_logits, "quotas");
  TORCH_CHECK_VALUE(quotas.dim() == 1 && quotas.size(0) < kMostSegments,
                    "quotas must have shape [S], one per segment, with S below ", kMostSegments,
                    "; found shape ", quotas.sizes());
}

// Checks a bit mask of n samples. Bit i % 8 of byte i / 8 stands for sample i.
inline void check_mask(const at::Tensor& mask, int64_t n, const char* name) {
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kByte, name, " must be uint8; found ",
                   mask.scalar_type());
  TORCH_CHECK_VALUE(mask.dim() == 1 && mask.size(0) == (n + 7) / 8, name, " must have shape [",
                    (n + 7) / 8, "], a bit for each of ", n, " samples; found shape ",
                    mask.sizes());
}

inline void check_key(int64_t key) {
  TORCH_CHECK_VALUE(key >= 0, "key must be in [0, 2**63); found ", key);
}

inline void check_masked_order(const at::Tensor& mask, int64_t num_samples, int64_t key,
                               int64_t position, int64_t count) {
  check_key(key);
  TORCH_CHECK_VALUE(num_samples >= 0 && num_samples <= int64_t{1} << 62,
                    "num_samples must be in [0, 2**62]; found ", num_samples);
  check_mask(mask, num_samples, "mask");
  TORCH_CHECK_VALUE(position >= 0 && position <= num_samples, "position must be in [0, ",
                    num_samples, "], the places of the order; found ", position);
  TORCH_CHECK_VALUE(count >= 0, "count must be at least 0; found ", count);
}

inline void check_oldest_mask(const at::Tensor& candidates, const at::Tensor& age, int64_t count,
                              int64_t key) {
  check_key(key);
  TORCH_CHECK_TYPE(age.scalar_type() == at::kByte, "age must be uint8; found ", age.scalar_type());
  TORCH_CHECK_VALUE(age.dim() == 1, "age must have one dimension [N]; found shape ", age.sizes());
  check_mask(candidates, age.size(0), "candidates");
  check_device(age, candidates, "age");
  TORCH_CHECK_VALUE(count >= 0, "count must be at least 0; found ", count);
}

inline void check_sampling_keys(const at::Tensor& gate_logits, const at::Tensor& age, double scale,
                                double turns, int64_t key, double ceiling) {
  check_gate_logits(gate_logits);
  check_age(gate_logits, age);
  TORCH_CHECK_VALUE(std::isfinite(scale), "scale must be a finite number; found ", scale);
  TORCH_CHECK_VALUE(std::isfinite(turns), "turns must be a finite number; found ", turns);
  check_key(key);
  TORCH_CHECK_VALUE(std::isfinite(ceiling) || ceiling > 0,
                    "ceiling must be a finite number, or inf for none; found ", ceiling);
}

}  // namespace adapruner
