// How a cross entropy cuts its rows into units of work. A unit is processed by one block of
// threads.
//
// A row has one softmax. There are three kinds of rows:
//   narrow   The classes lie side by side, at most 256. Some lanes of a warp share a row and keep
//            its values in registers.
//   wide     The classes lie side by side, and there are more. One or more warps share a row. Each
//            thread keeps kHeldPacks packs of 16 bytes in registers. The rest of the row goes into
//            shared memory. If that is full, the rest is read twice.
//   strided  The rows lie side by side, as in images [B, C, H, W]. Each lane has one of 32 rows.
//            One or more warps share the classes.
// If every sample has one row, a unit is the rows that a block processes at a time. Otherwise a
// unit is a run of rows of one sample. Then the rows of each sample that are not ignored are
// counted first ("prepared").
#pragma once

#include "plan.h"

namespace adapruner::cuda {

struct DeviceSize {
  int multiprocessors;
  int64_t block_shared;  // shared memory that a block can have, in bytes
};

struct CrossEntropyPlan {
  enum class Kernel { kNarrow, kWide, kStrided };

  Kernel kernel;
  int threads;       // threads of a block
  int row_threads;   // threads that share a row, a power of two; strided: warps that share 32 rows
  int row_shift;     // log₂ of row_threads
  int block_rows;    // rows that a block processes at a time
  int shared_packs;  // packs of a row that are kept in shared memory
  bool prepared;
  int64_t unit_rows;  // most rows of a unit
  int64_t parts;      // units of a sample if prepared, otherwise 1
  int64_t units;
};

// Consecutive rows of a unit. `first` counts from the first row of `sample`.
struct UnitRows {
  int64_t sample, first, rows;
};

constexpr int kWarp = 32;
constexpr int kBlockThreads = 256;  // most threads of a block, except for long wide rows
constexpr int kRowBlocks = 3;       // narrow or strided: blocks that a multiprocessor must hold
constexpr int kMostThreads = 1024;  // most threads of any block
constexpr int kNarrowValues = 8;    // most values of a row that a lane keeps
constexpr int kHeldPacks = 8;       // packs of a row that a thread keeps
constexpr int kPackBytes = 16;
constexpr int kStridedValues = 16;           // least values of a row that a lane reads in each pass
constexpr int kStaticShared = 4096;          // most bytes of static shared memory of a block
constexpr int kUnitsPerMultiprocessor = 16;  // so that few multiprocessors are idle at the end

ADAPRUNER_HD inline UnitRows rows_of(const CrossEntropyPlan& plan, int64_t samples, int64_t rows,
                                     int64_t unit) {
  const int64_t sample = plan.prepared ? unit / plan.parts : unit * plan.unit_rows;
  const int64_t first = plan.prepared ? (unit - sample * plan.parts) * plan.unit_rows : 0;
  const int64_t rest = plan.prepared ? rows - first : samples - sample;
  return {sample, first, rest < plan.unit_rows ? rest : plan.unit_rows};
}

// Most threads of a wide row. There are fewer if a thread needs more than 64 registers.
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
  const auto over = [&](int threads) {  // packs that do not fit the registers
    return std::max<int64_t>(packs - int64_t{threads} * kHeldPacks, 0);
  };
  int& threads = plan.row_threads;
  for (threads = 32; threads < 512 && over(threads) > 0;) threads *= 2;
  // More threads for each row if there are too few rows to fill the device.
  while (threads < 512 && threads * 2 <= packs &&
         all_rows * threads * 2 <= int64_t{device.multiprocessors} * 1024) {
    threads *= 2;
  }
  // Two blocks on a multiprocessor, so that one reads while the other writes. If they do not fit,
  // one large block.
  if (over(threads) * kPackBytes > device.block_shared / 2 - kStaticShared) threads = most_threads;
  const int64_t room = (device.block_shared - kStaticShared) / kPackBytes;
  plan.shared_packs = static_cast<int>(std::min(over(threads), room));
}

inline void plan_strided(CrossEntropyPlan& plan, int64_t classes) {
  plan.kernel = CrossEntropyPlan::Kernel::kStrided;
  const int64_t warps = ceil_div<int64_t>(classes, kStridedValues);
  plan.row_threads = power_of_two_from(std::min<int64_t>(warps, kBlockThreads / kWarp));
}

// The plan for B samples of R rows of C classes of `bytes` bytes each. No number is 0. `strided`:
// the rows lie side by side, not the classes. The units are shared among `launches` launches of
// about the same size.
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
