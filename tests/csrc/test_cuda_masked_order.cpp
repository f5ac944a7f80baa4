// csrc/cuda/masked_order.cuh in the emulator, against the permutation place by place.
#define ADAPRUNER_EMULATE
#include "../../csrc/cuda/masked_order.cuh"
#include "check.h"
#include "topk_cases.h"

namespace {

using namespace adapruner;
using namespace adapruner::cuda;

void orders_are_those_of_the_permutation(int64_t n, double share, int multiprocessors) {
  std::mt19937 random(static_cast<uint32_t>(n));
  std::vector<uint8_t> mask((n + 7) / 8, 0);
  for (int64_t i = 0; i < n; ++i) {
    if (random() < share * 4294967296.0) mask[i / 8] |= static_cast<uint8_t>(1u << (i % 8));
  }
  const uint64_t key = random();
  const Permutation p = make_permutation(n, key);
  std::vector<int64_t> samples, places;
  for (int64_t place = 0; place < n; ++place) {
    const auto i = static_cast<int64_t>(permuted(p, place));
    if (!(mask[i / 8] >> (i % 8) & 1)) continue;
    samples.push_back(i);
    places.push_back(place);
  }
  const auto all = static_cast<int64_t>(samples.size());
  for (const int64_t position : {int64_t{0}, n / 3, n}) {
    const int64_t before =
        std::lower_bound(places.begin(), places.end(), position) - places.begin();
    for (const int64_t count : {int64_t{0}, int64_t{1}, all / 2, all - before, all + 9}) {
      cases::Arena arena;
      const int64_t kept = std::min(count, all - before);
      std::vector<int64_t> indices(std::min(count, n - position), -1);
      const OrderEnd end = write_order(mask.data(), n, key, position, count, indices.data(),
                                       multiprocessors, std::ref(arena), nullptr);
      CHECK_EQUAL(end.kept, kept);
      for (int64_t r = 0; r < kept; ++r) CHECK_EQUAL(indices[r], samples[before + r]);
      const int64_t after = kept > 0 ? places[before + kept - 1] + 1 : position;
      CHECK_EQUAL(end.position, kept == count ? after : n);
    }
  }
}

void stretches_follow_the_share() {
  CHECK_EQUAL(stretch_length(10, 0, 0), kShortStretch);
  CHECK(stretch_length(1000000, 0, 0) >= 1000000);
  CHECK_EQUAL(stretch_length(int64_t{1} << 40, 5, 5), kLongStretch);
  CHECK_EQUAL(stretch_length(int64_t{1} << 20, 0, kShortStretch), kLongStretch);
  const int64_t half = stretch_length(1000000, 500, 1000);
  CHECK(half >= 2000000 && half < 2100000);
}

}  // namespace

int main() {
  stretches_follow_the_share();
  emulation::each_order([] {
    for (const int64_t n : {1, 31, 33, 1025}) {
      orders_are_those_of_the_permutation(n, 0.4, 1);
      if (n < 1000) orders_are_those_of_the_permutation(n, 1.0, 3);
    }
  });
  orders_are_those_of_the_permutation(100, 0.0, 1);
  orders_are_those_of_the_permutation(70001, 0.9, 2);  // several stretches
  return check::failures() != 0;
}
