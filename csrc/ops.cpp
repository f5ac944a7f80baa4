// Every operator of torch.ops.adapruner: its schema and its contract. Device code is in csrc/cpu/,
// autograd in csrc/autograd.cpp, argument checks in csrc/checks.h, formulas in csrc/math/.
//
// Shared arguments
//   ids          [B] any integer type: dataset indices in [0, N), repeats allowed
//   gate_logits  [N] float32: m
//   state        [kStateSize] int64: slots of csrc/math/state.h
// Shared results
//   loss         scalar, 1/B · Σ s_i·ℓ_i; 0 for an empty batch; float64 for float64 input, else
//                float32
//   sample_loss  [B], dtype of loss: ℓ; 0 for a sample all of whose rows are ignored
//   pressure     [B] float32: ℓ' − w·log(ℓ' + ε) + 2λ·(s̄ − r) with ℓ' = ℓ / loss scale; NaN where
//                ℓ is not finite, +inf where every row of the sample is ignored. Neither counts as
//                a visit.
// Neither sample_loss nor pressure is differentiable.
// IndexError and ValueError for what a batch holds (targets, ids, given losses): the CPU raises at
// once. CUDA notes it in the state, for Gates.check_errors() to raise; the offender takes no part.
#include <torch/library.h>

TORCH_LIBRARY(adapruner, m) {
  // Masked cross entropy of logits [B, C] or [B, C, ...] (float32, float64, bfloat16, float16) with
  // target [B] or [B, ...] (integers in [0, C) or ignore_index), weight [C], label_smoothing, as in
  // torch.nn.functional.cross_entropy; ℓ_i is the mean over the rows of sample i not ignored.
  // gradient: that of loss on logits, shape and dtype of logits; for float16 times
  // kHalfGradientScale; empty [0] unless compute_gradient. The backward pass may write over it
  // where the graph is not kept and the caller no longer holds it.
  m.def(
      "masked_cross_entropy(Tensor logits, Tensor target, Tensor ids, Tensor gate_logits, "
      "Tensor state, Tensor? weight=None, int ignore_index=-100, float label_smoothing=0.0, "
      "bool compute_gradient=True) "
      "-> (Tensor loss, Tensor sample_loss, Tensor pressure, Tensor gradient)");

  // The same, the gradient written over logits. Autograd refuses a backward pass for which an
  // earlier operation needs the logits; backward runs once. float16: as above.
  m.def(
      "masked_cross_entropy_(Tensor(a!) logits, Tensor target, Tensor ids, Tensor gate_logits, "
      "Tensor state, Tensor? weight=None, int ignore_index=-100, float label_smoothing=0.0) "
      "-> (Tensor loss, Tensor sample_loss, Tensor pressure)");

  // The same of logits = input · linear_weightᵀ + linear_bias, which are never held whole: input
  // [B, H] or [B, ..., H], linear_weight [C, H], linear_bias [C], all of one dtype of the four;
  // target [B] or [B, ...]. Rows go chunk by chunk through one scratch of at most 32 MiB, or 64
  // rows of logits where these take more (CUDA: 256 MiB, 512 rows); ignored rows take no part,
  // whatever they hold, and no time on the CPU. Products are at::mm's in the dtype of input
  // (float16: in float32, on a float32 copy of the weight).
  // Gradients: those of loss on input, linear_weight and linear_bias, of their shapes, contiguous,
  // in their dtype; sums over chunks are float32 for bfloat16 and float16. Each empty [0] unless it
  // is to be computed (and for no bias). The same bits every time at one number of threads.
  m.def(
      "masked_linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor? linear_bias, "
      "Tensor target, Tensor ids, Tensor gate_logits, Tensor state, Tensor? weight=None, "
      "int ignore_index=-100, float label_smoothing=0.0, bool compute_input_gradient=True, "
      "bool compute_weight_gradient=True, bool compute_bias_gradient=True) "
      "-> (Tensor loss, Tensor sample_loss, Tensor pressure, Tensor input_gradient, "
      "Tensor weight_gradient, Tensor bias_gradient)");

  // The same from a given sample_loss [B] ≥ 0 (negative: ValueError). gradient [B]: s_i / B.
  m.def(
      "masked_loss(Tensor sample_loss, Tensor ids, Tensor gate_logits, Tensor state) "
      "-> (Tensor loss, Tensor pressure, Tensor gradient)");

  // A stored gradient times the upstream gradient (scalar); differentiable in neither.
  m.def("scale_gradient(Tensor gradient, Tensor upstream) -> Tensor");
  m.def("scale_gradient_(Tensor(a!) gradient, Tensor upstream) -> ()");

  // One visit of each distinct id: m ← m − η·a·k·s·(1 − s)·Σ pressure, all from values before the
  // call; age [N] uint8 becomes 0; gate sum and open count in state follow. O(B). Visits whose
  // pressure is not finite leave the gate alone and end "never visited"; NaN is counted and listed.
  // In warm-up (resting) gates and ages stay. sample_loss [B] adds to the epoch's loss sum, and is
  // noted in last_loss [N] float32 where that is given (not for rows all ignored).
  m.def(
      "gate_update(Tensor(a!) gate_logits, Tensor(b!) age, Tensor(c!) state, "
      "Tensor(d!)? last_loss, Tensor ids, Tensor pressure, Tensor sample_loss) -> ()");

  // Before gate_update, where the loss scale follows the mean loss of the epoch (scale_running) and
  // this is the epoch's first batch: no loss gives a scale yet. The loss scale becomes the mean of
  // the batch's finite sample_loss [B], if above 0, and pressure [B] float32 what it is at that
  // scale. Otherwise nothing. Samples all of whose rows are ignored take no part.
  m.def("first_loss_scale(Tensor(a!) pressure, Tensor(b!) state, Tensor sample_loss) -> ()");

  // At the end of an epoch, its step of every gate that it did not visit (age neither 0 nor "never
  // visited"), with the pressure of the sample's last_loss [N] float32, unless that is not finite.
  // In warm-up (resting) nothing.
  // The sums in state are left as they were: the top-k that follows brings them up to date.
  m.def("gate_drift(Tensor(a!) gate_logits, Tensor age, Tensor state, Tensor last_loss) -> ()");

  // The k largest of gate_logits: exact; +0 and −0 equal; equal values to the lower index; NaN is a
  // ValueError naming the first. mask [ceil(N / 8)] uint8, bit i % 8 of byte i / 8;
  // sums [2] int64: Σ gate_fixed(slope, m), of σ(slope·m)·2³⁰, and the number of
  // m > 0; empty [0] without a slope. A slope that is not finite is a ValueError.
  // Memory besides input and results: 8 MB, and at most a quarter of a byte per value from N = 10⁸
  // on (a half below; 2 where the sample that brackets the threshold misleads). An input that is not contiguous is copied, and, on a GPU, one that is not
  // aligned to 16 bytes.
  m.def("topk_mask(Tensor gate_logits, int k, float? slope=None) -> (Tensor mask, Tensor sums)");

  // The same with quotas [S] int64 for segments [N] of any integer type: the quotas[j] largest of
  // those in segment j; −1: in no segment, never kept. Memory: see csrc/cpu/segmented_topk.cpp.
  m.def(
      "segmented_topk(Tensor gate_logits, Tensor segments, Tensor quotas, float? slope=None) "
      "-> (Tensor mask, Tensor sums)");

  // A top-k of all values of several ranks: they share a search by digits, a few kilobytes a round.
  // Values are compared as keys: integers in [lowest_key, highest_key] of adapruner._C that are
  // ordered as the numbers are, −0 and +0 as one. key_range [3] int64 on the device of gate_logits:
  // the lowest and the highest key that the threshold may have, and its rank, from 1 and from the
  // largest, among the values with keys in between. histogram [2¹¹ + 1] int64: of the values with
  // keys in the range by their next digit of 11 bits, the lowest digit first; and, last, the number
  // of those with larger keys. NaN is counted nowhere. Neither operator waits for the device.
  //   digit_histogram   of one rank's gate_logits. Histograms of ranks add up to that of them all.
  //   narrowed_range    the range of the digit that the rank lies in, of a histogram of all ranks;
  //                     after three rounds from the whole range it is one key. On the CPU a range
  //                     of no keys, or a rank that the histogram has not, is a ValueError; on a GPU
  //                     bounds are brought to the next key, and such a range is left as it is.
  m.def("digit_histogram(Tensor gate_logits, Tensor key_range) -> Tensor");
  m.def("narrowed_range(Tensor key_range, Tensor histogram) -> Tensor");

  // The next `count` samples of an epoch's order (fewer at its end) and the position to go on from,
  // int64 scalar. The order is a permutation π of [0, num_samples) that `key` fixes, without the
  // samples whose bit in mask [ceil(num_samples / 8)] uint8 is 0; position is a place in the
  // permutation as a whole, in [0, num_samples], 0 at the start. indices int64. The same at any
  // number of threads, and however the order is cut into calls. num_samples ≤ 2⁶².
  m.def(
      "masked_order(Tensor mask, int num_samples, int key, int position, int count) "
      "-> (Tensor indices, Tensor next_position)");

  // Of the samples whose bit in candidates [ceil(N / 8)] uint8 is set, the `count` with the largest
  // age [N] uint8, as such a mask; equal ones in the order of a hash that `key` fixes and in which
  // no two samples are equal. All, where there are no more than count.
  m.def("oldest_mask(Tensor candidates, Tensor age, int count, int key) -> Tensor");

  // Keys by whose top-k samples are drawn without replacement, with chances in proportion to
  // exp(scale·min(m, ceiling))·age^turns (Gumbel-top-k: Kool, van Hoof and Welling, ICML 2019,
  // arXiv 1903.06059): keys [N] float32, scale·min(m_i, ceiling) + turns·log(max(age_i, 1)) + g_i
  // with age [N] uint8, computed in float64 and rounded once. g_i = −log(−log u_i) is standard
  // Gumbel noise, of u_i in (0, 1) from the hash by which `key` ≥ 0 orders equal ages in
  // oldest_mask. −inf where m is, whatever the scale; NaN where m is. scale and turns finite,
  // ceiling finite or +inf for none (ValueError). The same bits at any number of threads, on every
  // instruction set and device.
  m.def(
      "sampling_keys(Tensor gate_logits, Tensor age, float scale, float turns, int key, "
      "float ceiling) -> Tensor");
}
