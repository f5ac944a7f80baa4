// csrc/cuda/oldest_mask.cuh in the emulator, compared with a sort by age and hash.
#define ADAPRUNER_EMULATE
#include "../../csrc/cuda/oldest_mask.cuh"
#include "check.h"
#include "topk_cases.h"

namespace {

using namespace adapruner;
using namespace adapruner::cuda;

void oldest_are_those_of_a_sort(int64_t n, int ages, double share, int multiprocessors) {
  std::mt19937 random(static_cast<uint32_t>(n));
  std::vector<uint8_t> age(n + 1), candidates((n + 7) / 8, 0);
  std::vector<int64_t> order;
  const uint64_t key = random();
  for (int64_t i = 0; i < n; ++i) {
    age[i] = static_cast<uint8_t>(random() % ages * 255 / ages);
    if (random() >= share * 4294967296.0) continue;
    candidates[i / 8] = static_cast<uint8_t>(candidates[i / 8] | 1u << (i % 8));
    order.push_back(i);
  }
  const auto hash = [&](int64_t i) {
    return mixed(static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15u + key);
  };
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return age[a] != age[b] ? age[a] > age[b] : hash(a) < hash(b);
  });
  if (n % 8 != 0) candidates.back() |= 0x80;  // a spare bit is not a candidate
  const auto most = static_cast<int64_t>(order.size());
  for (const int64_t count : {int64_t{0}, int64_t{1}, most / 3, most, most + 5}) {
    cases::Arena arena;
    std::vector<uint8_t> mask(candidates.size(), 0xff), expected(candidates.size(), 0);
    for (int64_t r = 0; r < std::min(count, most); ++r) {
      expected[order[r] / 8] = static_cast<uint8_t>(expected[order[r] / 8] | 1u << (order[r] % 8));
    }
    write_oldest(candidates.data(), age.data(), n, count, key, mask.data(), multiprocessors,
                 std::ref(arena), nullptr);
    CHECK(mask == expected);
  }
}

}  // namespace

int main() {
  emulation::each_order([] {
    for (const int64_t n : {1, 7, 15, 17, 1003}) {
      for (const int ages : {1, 3, 255}) oldest_are_those_of_a_sort(n, ages, 0.6, 1);
    }
    oldest_are_those_of_a_sort(20005, 3, 1.0, 4);
    oldest_are_those_of_a_sort(20000, 1, 0.3, 2);
  });
  cases::Arena arena;
  write_oldest(nullptr, nullptr, 0, 3, 1, nullptr, 1, std::ref(arena), nullptr);
  return check::failures() != 0;
}
