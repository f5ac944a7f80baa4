// How the rows of a cross entropy are cut into units of work, a block of threads for each.
//
// A row is what one softmax is over. Three ways to have one:
//   narrow   classes side by side, at most 256: some lanes of a warp, the values in registers
//   wide     classes side by side, more: one or more warps. Each thread keeps kHeldPacks packs of
//            16 bytes in registers. The rest of the row goes into shared memory. Where that is full,
//            the rest is read a second time.
//   strided  rows side by side, as in images [B, C, H, W]: a lane for each of 32 rows, whose classes
//            are dealt to one or more warps
// A unit is the rows that a block has at one time, where every sample is one row, else a stretch of
// the rows of one sample. Then the rows that count in each sample are counted beforehand
// ("prepared").
#pragma once

#include "plan.h"

namespace adapruner::cuda {

struct DeviceSize {
  int multiprocessors;
  int64_t block_shared;  // bytes of shared memory that a block can have
};

struct CrossEntropyPlan {
  enum class Kernel { kNarrow, kWide, kStrided };

  Kernel kernel;
  int threads;       // of a block
  int row_threads;   // that share a row, a power of two; strided: warps that share 32 rows
  int row_shift;     // its logarithm
  int block_rows;    // that a block has at a time
  int shared_packs;  // of a row, kept in shared memory
  bool prepared;
  int64_t unit_rows;  // of a unit, at most
  int64_t parts;      // units of a sample, where prepared; else 1
  int64_t units;
};

// Rows of a unit: they follow one another. `first` counts from the first row of `sample`.
struct UnitRows {
  int64_t sample, first, rows;
};

constexpr int kWarp = 32;
constexpr int kBlockThreads = 256;  // of a block, at most, but for long wide rows
constexpr int kRowBlocks = 3;       // of narrow or strided rows, that a multiprocessor has at least
constexpr int kMostThreads = 1024;  // of any
constexpr int kNarrowValues = 8;    // of a row that a lane keeps, at most
constexpr int kHeldPacks = 8;       // of a row that a thread keeps
constexpr int kPackBytes = 16;
constexpr int kStridedValues = 16;   // of a row that a lane reads in each pass, at least
constexpr int kStaticShared = 4096;  // bytes of shared memory that a block takes besides, at most
constexpr int kUnitsPerMultiprocessor = 16;  // so that the last ones to end leave few idle

ADAPRUNER_HD inline UnitRows rows_of(const CrossEntropyPlan& plan, int64_t samples, int64_t rows,
                                     int64_t unit) {
  const int64_t sample = plan.prepared ? unit / plan.parts : unit * plan.unit_rows;
  const int64_t first = plan.prepared ? (unit - sample * plan.parts) * plan.unit_rows : 0;
  const int64_t rest = plan.prepared ? rows - first : samples - sample;
  return {sample, first, rest < plan.unit_rows ? rest : plan.unit_rows};
}

// Threads of a wide row, at most: fewer where each takes more than 64 registers.
constexpr int most_row_threads(size_t bytes, bool smoothing) {
  return bytes == 8 || smoothing ? kMostThreads / 2 : kMostThreads;
}

inline int power_of_two_from(int64_t least) {
  int power = 1;
  while (power < least) power *= 2;
  return power;
}

// Threads of a row, by its length.
inline void plan_narrow(CrossEntropyPlan& plan, int64_t classes) {
  plan.kernel = CrossEntropyPlan::Kernel::kNarrow;
  plan.row_threads = power_of_two_from(std::min<int64_t>(ceil_div<int64_t>(classes, 4), kWarp));
}

inline void plan_wide(CrossEntropyPlan& plan, int64_t all_rows, int64_t row_bytes, int most_threads,
                      const DeviceSize& device) {
  plan.kernel = CrossEntropyPlan::Kernel::kWide;
  const int64_t packs = row_bytes / kPackBytes;
  const auto over = [&](int threads) {  // what registers do not take
    return std::max<int64_t>(packs - int64_t{threads} * kHeldPacks, 0);
  };
  int& threads = plan.row_threads;
  for (threads = 32; threads < 512 && over(threads) > 0;) threads *= 2;
  // More threads for each row, where rows are too few to fill the device.
  while (threads < 512 && threads * 2 <= packs &&
         all_rows * threads * 2 <= int64_t{device.multiprocessors} * 1024) {
    threads *= 2;
  }
  // Two blocks on a multiprocessor, so that one reads while the other writes; else one large one.
  if (over(threads) * kPackBytes > device.block_shared / 2 - kStaticShared) threads = most_threads;
  const int64_t room = (device.block_shared - kStaticShared) / kPackBytes;
  plan.shared_packs = static_cast<int>(std::min(over(threads), room));
}

inline void plan_strided(CrossEntropyPlan& plan, int64_t classes) {
  plan.kernel = CrossEntropyPlan::Kernel::kStrided;
  const int64_t warps = ceil_div<int64_t>(classes, kStridedValues);
  plan.row_threads = power_of_two_from(std::min<int64_t>(warps, kBlockThreads / kWarp));
}

// B samples of R rows of C classes, of so many bytes each; none of the numbers is 0. `strided`: not
// the classes are side by side but the rows. The units are for so many launches of about as many.
inline CrossEntropyPlan plan_cross_entropy(int64_t samples, int64_t rows, int64_t classes,
                                           int bytes, bool strided, bool smoothing,
                                           const DeviceSize& device, int64_t launches = 1) {
  CrossEntropyPlan plan{};
  if (strided) {
    plan_strided(plan, classes);
  } else if (classes <= kWarp * kNarrowValues) {
    plan_narrow(plan, classes);
  } else {
    plan_wide(plan, samples * rows, classes * bytes, most_row_threads(bytes, smoothing), device);
  }
  plan.prepared = strided || rows > 1;
  const int64_t wanted = (plan.prepared ? rows : samples) * plan.row_threads;
  plan.threads = power_of_two_from(std::min<int64_t>(wanted, kBlockThreads));
  plan.threads = std::max(plan.threads, strided ? plan.row_threads * kWarp : plan.row_threads);
  plan.threads = std::max(plan.threads, kWarp);
  plan.block_rows = plan.threads / plan.row_threads;
  while (1 << plan.row_shift < plan.row_threads) ++plan.row_shift;

  plan.unit_rows = plan.block_rows;
  plan.parts = 1;
  plan.units = ceil_div<int64_t>(samples, plan.block_rows);
  if (plan.prepared) {
    const int64_t turns = ceil_div<int64_t>(rows, plan.block_rows);
    const int64_t least = launches * device.multiprocessors * kUnitsPerMultiprocessor;
    plan.unit_rows = ceil_div(turns, std::min(turns, ceil_div(least, samples))) * plan.block_rows;
    plan.parts = ceil_div(rows, plan.unit_rows);
    plan.units = samples * plan.parts;
  }
  return plan;
}

}  // namespace adapruner::cuda
