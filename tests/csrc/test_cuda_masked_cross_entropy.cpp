// Results of a batch from kernels in the emulator. They do not depend on the order of blocks, nor
// on how units are shared among launches. Also the results of bad batches.
#include "cross_entropy_cases.h"

namespace {

using namespace cases;

template <typename T>
void is_the_same(const Case& with) {
  emulation::set_order(0);
  Batch<T> first(with, 3);
  first.run();
  first.check();
  emulation::each_order([&] {
    Batch<T> again(with, 3);
    again.run();
    CHECK(again.loss == first.loss);
    CHECK(again.sample_loss == first.sample_loss);
    CHECK(again.pressure == first.pressure);
    CHECK(std::memcmp(again.logits.data(), first.logits.data(), first.logits.size() * sizeof(T)) ==
          0);
  });
}

void the_order_of_blocks_does_not_matter() {
  is_the_same<float>({.samples = 300, .rows = 1, .classes = 10});
  is_the_same<float>({.samples = 30, .rows = 40, .classes = 3, .ignored = 0.2});
  is_the_same<__nv_bfloat16>({.samples = 20, .rows = 1, .classes = 300});
  is_the_same<float>({.samples = 3, .rows = 20, .classes = 300, .smoothing = 0.1, .ignored = 0.2});
  is_the_same<float>({.samples = 2, .rows = 1, .classes = 17000, .device = {3, 16 << 10}});
  is_the_same<float>({.samples = 2, .rows = 9001, .classes = 2, .ignored = 0.2});
  is_the_same<float>({.samples = 3, .rows = 4097, .classes = 3, .strided = true, .ignored = 0.2});
  is_the_same<__half>({.samples = 2, .rows = 90, .classes = 40, .strided = true, .ignored = 0.3});
}

void units_may_be_spread_over_launches() {
  for (const int64_t step : {1, 2, 5}) {
    run<float>({.samples = 30, .rows = 1, .classes = 300, .units_per_launch = step});
    run<__nv_bfloat16>(
        {.samples = 5, .rows = 9, .classes = 260, .ignored = 0.3, .units_per_launch = step});
    run<float>({.samples = 300, .rows = 1, .classes = 10, .units_per_launch = step});
    run<double>(
        {.samples = 4, .rows = 300, .classes = 3, .ignored = 0.3, .units_per_launch = step});
  }
}

// target and id: the wrong values.
void bad_batches(const Case& with) {
  Batch<float> batch(with, 5);
  const int64_t all = with.samples * with.rows;
  batch.target[all - 1] = with.classes;
  batch.target[all / 2] = -1;
  batch.run();
  batch.check();
  CHECK_EQUAL(batch.state.slots[kErrorKind], int64_t{kBadTarget});
  CHECK_EQUAL(batch.state.slots[kErrorPlace], all / 2);
  CHECK_EQUAL(batch.state.slots[kErrorValue], -1);
  batch.id[1] = kGates;
  batch.id[2] = -3;
  batch.logits = batch.before;
  batch.run();
  batch.check();
  CHECK_EQUAL(batch.state.slots[kErrorKind], int64_t{kBadId});
  CHECK_EQUAL(batch.state.slots[kErrorPlace], 1);
  CHECK_EQUAL(batch.state.slots[kErrorValue], kGates);
}

void offenders_are_noted_and_take_no_part() {
  emulation::each_order([] {
    bad_batches({.samples = 9, .rows = 1, .classes = 10});
    bad_batches({.samples = 9, .rows = 4, .classes = 10});
    bad_batches({.samples = 5, .rows = 1, .classes = 300});
    bad_batches({.samples = 5, .rows = 3, .classes = 300, .smoothing = 0.1});
    bad_batches({.samples = 4, .rows = 40, .classes = 5, .strided = true});
  });
}

void gates_of_a_plain_mean_weigh_one() {
  for (const Slot slot : {kResting, kPlain}) {
    Batch<double> batch({.samples = 6, .rows = 1, .classes = 10}, 7);
    batch.state.slots[slot] = 1;
    batch.run();
    double sum = 0;
    for (const double loss : batch.sample_loss) sum += loss;
    CHECK(std::fabs(batch.loss - sum / 6) < 1e-13);
  }
}

// A row of −inf only, a row with +inf, a row with NaN, and a target of −inf.
void losses_that_are_not_finite() {
  for (const bool strided : {false, true}) {
    for (const int64_t classes : {9, 300}) {
      Batch<float> batch({.samples = 4, .rows = 1, .classes = classes, .strided = strided}, 9);
      batch.target.assign(4, 2);
      for (int64_t c = 0; c < classes; ++c) batch.logits[batch.place(0, 0, c)] = -INFINITY;
      batch.logits[batch.place(1, 0, 5)] = INFINITY;
      batch.logits[batch.place(2, 0, 5)] = NAN;
      batch.logits[batch.place(3, 0, 2)] = -INFINITY;
      batch.run();
      for (int64_t b = 0; b < 3; ++b) {
        CHECK(std::isnan(batch.sample_loss[b]));
        for (int64_t c = 0; c < classes; ++c) CHECK(std::isnan(batch.logits[batch.place(b, 0, c)]));
      }
      CHECK(batch.sample_loss[3] == INFINITY);
      for (int64_t c = 0; c < classes; ++c)
        CHECK(std::isfinite(batch.logits[batch.place(3, 0, c)]));
      for (const float pressure : batch.pressure) CHECK(std::isnan(pressure));
    }
  }
}

}  // namespace

int main() {
  the_order_of_blocks_does_not_matter();
  units_may_be_spread_over_launches();
  offenders_are_noted_and_take_no_part();
  gates_of_a_plain_mean_weigh_one();
  losses_that_are_not_finite();
  return check::failures() != 0;
}
