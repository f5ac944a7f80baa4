// The register of contracts: the schema of every operator of torch.ops.adapruner, and what it does.
// Kernels are in csrc/cpu/ and csrc/cuda/, autograd is in csrc/autograd.cpp, argument checks are in
// csrc/checks.h, and formulas are in csrc/math/.
//
// Arguments that many operators share
//   ids          [B] any integer type: dataset indices in [0, N). An id may repeat.
//   gate_logits  [N] float32: m
//   state        [kStateSize] int64: the slots of csrc/math/state.h
// Results that many operators share
//   loss         scalar: 1/B · Σ s_i·ℓ_i. It is 0 for an empty batch. Its dtype is float64 for
//                float64 input, and float32 otherwise.
//   sample_loss  [B], dtype of loss: ℓ. It is 0 for a sample that has ignored rows only.
//   pressure     [B] float32: min(ℓ' − w·log(ℓ' + ε), cap) + 2λ·(s̄ − r), with
//                ℓ' = ℓ / loss scale and ℓ as in sample_loss. It is NaN where ℓ is not finite, and
//                +inf for a sample that has ignored rows only. Neither value counts as a visit.
// sample_loss and pressure are not differentiable.
//
// Errors in the values of a batch (targets, ids, given losses) are IndexError or ValueError. The
// CPU raises them at once. CUDA writes them into the state, and Gates.check_errors() raises them.
// The wrong sample or row takes no part in the results.
//
// A bit mask of N samples is uint8 [ceil(N / 8)]. Bit i % 8 of byte i / 8 stands for sample i.
#include <torch/library.h>

TORCH_LIBRARY(adapruner, m) {
  // Cross entropy of logits [B, C] or [B, C, ...], weighted by the gates. target [B] or [B, ...]
  // holds integers in [0, C) or ignore_index. weight [C] and label_smoothing are as in
  // torch.nn.functional.cross_entropy. logits are float32, float64, bfloat16 or float16.
  // ℓ_i is the mean over the rows of sample i that are not ignored.
  // gradient is the gradient of loss with respect to logits, with the shape and dtype of logits.
  // For float16 it is multiplied by kHalfGradientScale. It is empty [0] without compute_gradient.
  // The backward pass may overwrite it if the graph is not kept and the caller no longer holds it.
  m.def(
      "masked_cross_entropy(Tensor logits, Tensor target, Tensor ids, Tensor gate_logits, "
      "Tensor state, Tensor? weight=None, int ignore_index=-100, float label_smoothing=0.0, "
      "bool compute_gradient=True) "
      "-> (Tensor loss, Tensor sample_loss, Tensor pressure, Tensor gradient)");

  // As masked_cross_entropy, but the gradient overwrites logits. The backward pass can run once.
  // Autograd raises an error if an earlier operation saved the logits for its own backward pass.
  m.def(
      "masked_cross_entropy_(Tensor(a!) logits, Tensor target, Tensor ids, Tensor gate_logits, "
      "Tensor state, Tensor? weight=None, int ignore_index=-100, float label_smoothing=0.0) "
      "-> (Tensor loss, Tensor sample_loss, Tensor pressure)");

  // As masked_cross_entropy of logits = input · linear_weightᵀ + linear_bias. The logits are never
  // in memory as a whole. input [B, H] or [B, ..., H], linear_weight [C, H] and linear_bias [C]
  // have the same dtype, one of the four. target is [B] or [B, ...]. Rows are processed in chunks.
  // The logits of a chunk are in a scratch of at most 32 MiB, or of 64 rows if these take more
  // (CUDA: 256 MiB, 512 rows). The values of ignored rows are never used. On the CPU ignored rows
  // take no time. Products are computed by at::mm in the dtype of input. For float16 they are
  // computed in float32, on a float32 copy of the weight. The gradients of loss with respect to
  // input, linear_weight and linear_bias have their shapes and dtype and are contiguous. For float16
  // they are float32, until the backward pass knows the upstream gradient. For bfloat16 and float16,
  // sums over chunks are float32. A gradient that is not computed is empty [0], and so is
  // bias_gradient without a bias. Results are the same bits in every run with the same number of
  // threads.
  m.def(
      "masked_linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor? linear_bias, "
      "Tensor target, Tensor ids, Tensor gate_logits, Tensor state, Tensor? weight=None, "
      "int ignore_index=-100, float label_smoothing=0.0, bool compute_input_gradient=True, "
      "bool compute_weight_gradient=True, bool compute_bias_gradient=True) "
      "-> (Tensor loss, Tensor sample_loss, Tensor pressure, Tensor input_gradient, "
      "Tensor weight_gradient, Tensor bias_gradient)");

  // Loss and pressure from given sample losses [B]. A negative loss is a ValueError, unless rounding
  // can explain it (kLossRounding of csrc/math/gate.h); then it counts as 0.
  // gradient [B] is s_i / B, in the dtype of loss.
  m.def(
      "masked_loss(Tensor sample_loss, Tensor ids, Tensor gate_logits, Tensor state) "
      "-> (Tensor loss, Tensor pressure, Tensor gradient)");

  // A stored gradient times the upstream gradient (scalar). Not differentiable.
  m.def("scale_gradient(Tensor gradient, Tensor upstream) -> Tensor");
  m.def("scale_gradient_(Tensor(a!) gradient, Tensor upstream) -> ()");

  // Updates the gate of each distinct id once: m ← m − η·a·k·s·(1 − s)·Σ pressure. All terms use
  // the values from before the call. age [N] uint8 becomes 0, and the gate sum and the number of
  // open gates in state are updated. Takes O(B) time. A visit whose pressure is not finite does not
  // change the gate. If the sample was never visited before, its age becomes 1. NaN pressures are
  // counted, and the first ids with one are listed. In warm-up (slot kResting) gates and ages stay
  // as they are. sample_loss [B] is added to the loss sum of the epoch. last_loss [N] float32, if
  // given, receives the loss of each visited sample, except of samples that have ignored rows only.
  m.def(
      "gate_update(Tensor(a!) gate_logits, Tensor(b!) age, Tensor(c!) state, "
      "Tensor(d!)? last_loss, Tensor ids, Tensor pressure, Tensor sample_loss) -> ()");

  // Sets the loss scale from the first batch of an epoch. Call it before gate_update. It does
  // nothing unless the loss scale follows the mean loss (slot kScaleRunning) and the epoch has no
  // loss yet. It sets the loss scale to the mean of the finite values of sample_loss [B], if that
  // mean is above 0, and computes pressure [B] float32 again with this scale. Samples that have
  // ignored rows only take no part.
  m.def("first_loss_scale(Tensor(a!) pressure, Tensor(b!) state, Tensor sample_loss) -> ()");

  // Updates the gates that the epoch did not visit. Call it at the end of an epoch. It applies to
  // samples whose age is neither 0 nor "never visited" and whose last_loss [N] float32 is finite.
  // The pressure is computed from last_loss. In warm-up (slot kResting) it does nothing.
  // The sums in state are not updated. The next top-k updates them.
  m.def("gate_drift(Tensor(a!) gate_logits, Tensor age, Tensor state, Tensor last_loss) -> ()");

  // The k largest values of gate_logits as a bit mask. The result is exact. +0 equals −0. Of equal
  // values the ones with lower indices are kept. NaN is a ValueError that names the first index.
  // sums [2] int64 holds Σ gate_fixed(slope, m), where gate_fixed rounds σ(slope·m)·2³⁰, and the
  // number of m > 0. It is empty [0] without a slope. A slope that is not finite is a ValueError.
  // Memory besides input and results: 8 MB, plus at most a quarter of a byte per value from N = 10⁸
  // on, half a byte below, and two bytes in the rare case where the sample of the values misses the
  // threshold. An input that is not contiguous is copied. On a GPU an input that is not aligned to
  // 16 bytes is copied too.
  m.def("topk_mask(Tensor gate_logits, int k, float? slope=None) -> (Tensor mask, Tensor sums)");

  // As topk_mask, with a quota for each segment. segments [N], of any integer type, holds the
  // segment of each value, or −1 for a value that is in no segment and never kept. quotas [S] holds
  // the number of values to keep in each segment. Memory: see csrc/cpu/segmented_topk.cpp.
  m.def(
      "segmented_topk(Tensor gate_logits, Tensor segments, Tensor quotas, float? slope=None) "
      "-> (Tensor mask, Tensor sums)");

  // The next `count` samples of an epoch's order, as int64 indices, and the position after them, as
  // an int64 scalar. There are fewer at the end of the order. `key` fixes a permutation π of
  // [0, num_samples). The order is π without the samples whose bit in the bit mask `mask` is 0.
  // position is a place in the whole permutation, in [0, num_samples], and 0 at the start.
  // num_samples ≤ 2⁶². The order is the same at any number of threads, and however it is cut into
  // calls. This operator has a CPU kernel only.
  m.def(
      "masked_order(Tensor mask, int num_samples, int key, int position, int count) "
      "-> (Tensor indices, Tensor next_position)");

  // The `count` oldest candidates as a bit mask. candidates is a bit mask of N samples, and
  // age [N] is uint8. Candidates of equal age are taken in the order of a hash that `key` fixes. No
  // two samples have the same hash. If there are no more than `count` candidates, all are taken.
  m.def("oldest_mask(Tensor candidates, Tensor age, int count, int key) -> Tensor");

  // Random keys [N] float32. The k samples with the largest keys are a draw of k samples without
  // replacement, with chances in proportion to exp(scale·min(m, ceiling))·age^turns (Gumbel-top-k:
  // Kool, van Hoof and Welling, ICML 2019, arXiv 1903.06059).
  // The key of sample i is scale·min(m_i, ceiling) + turns·log(max(age_i, 1)) + g_i, with
  // age [N] uint8. It is computed in float64 and rounded once. g_i = −log(−log u_i) is standard
  // Gumbel noise. u_i in (0, 1) comes from the hash of oldest_mask, and `key` ≥ 0 fixes it. The key
  // is −inf where m is −inf, for every scale, and NaN where m is NaN. scale and turns must be
  // finite. ceiling must be finite, or +inf for no ceiling. Other values are a ValueError. Results
  // are the same bits at any number of threads, on every instruction set and device.
  m.def(
      "sampling_keys(Tensor gate_logits, Tensor age, float scale, float turns, int key, "
      "float ceiling) -> Tensor");
}
