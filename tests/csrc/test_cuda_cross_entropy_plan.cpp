// The units of work of cross entropies.
#include "../../csrc/cuda/cross_entropy_plan.h"
#include "../../csrc/linear_chunks.h"
#include "check.h"

namespace {

using namespace adapruner::cuda;
using Kernel = CrossEntropyPlan::Kernel;

constexpr DeviceSize kH200{132, 227 * 1024}, kA100{108, 163 * 1024}, kSmall{20, 99 * 1024};

bool is_power_of_two(int x) { return x > 0 && (x & (x - 1)) == 0; }

// Checks properties that all plans have, and that the units contain every row once, in order.
void holds(int64_t samples, int64_t rows, int64_t classes, int bytes, bool strided, bool smoothing,
           const DeviceSize& device, int64_t launches) {
  const CrossEntropyPlan plan =
      plan_cross_entropy(samples, rows, classes, bytes, strided, smoothing, device, launches);
  CHECK(is_power_of_two(plan.row_threads));
  CHECK_EQUAL(1 << plan.row_shift, plan.row_threads);
  CHECK(is_power_of_two(plan.block_rows));
  CHECK(is_power_of_two(plan.threads));
  CHECK_EQUAL(plan.threads, plan.block_rows * plan.row_threads);
  CHECK(plan.threads >= 32);
  CHECK(plan.threads <= 1024);
  CHECK_EQUAL(plan.prepared, strided || rows > 1);
  switch (plan.kernel) {
    case Kernel::kNarrow:
      CHECK(!strided);
      CHECK(plan.row_threads <= 32);
      CHECK(classes <= int64_t{plan.row_threads} * kNarrowValues);
      CHECK(plan.threads <= kBlockThreads);
      break;
    case Kernel::kWide:
      CHECK(!strided);
      CHECK(plan.row_threads >= 32);
      CHECK(plan.row_threads <= most_row_threads(bytes, smoothing));
      CHECK(plan.block_rows <= kBlockThreads / 32);
      CHECK(plan.shared_packs == 0 || plan.block_rows == 1);
      CHECK(plan.shared_packs * kPackBytes + kStaticShared <= device.block_shared);
      break;
    case Kernel::kStrided:
      CHECK(strided);
      CHECK(plan.threads <= kBlockThreads);
      CHECK(plan.block_rows >= 32);
      break;
  }
  int64_t sample = 0, row = 0;
  for (int64_t unit = 0; unit < plan.units; ++unit) {
    const UnitRows found = rows_of(plan, samples, rows, unit);
    CHECK_EQUAL(found.sample, sample);
    CHECK_EQUAL(found.first, row);
    CHECK(found.rows > 0);
    CHECK(found.rows <= plan.unit_rows);
    row += found.rows;
    if (!plan.prepared) {
      sample += found.rows;
      row = 0;
    } else if (row == rows) {
      ++sample;
      row = 0;
    }
  }
  CHECK_EQUAL(sample, samples);
}

void every_plan() {
  for (const DeviceSize& device : {kH200, kA100, kSmall}) {
    for (const int64_t classes : {1, 2, 10, 100, 256, 257, 1000, 8192, 32000, 128256, 1000000}) {
      for (const int64_t samples : {1, 2, 255, 1000}) {
        for (const int64_t rows : {1, 2, 31, 700}) {
          for (const int bytes : {2, 4, 8}) {
            for (const int64_t launches : {1, 9}) {
              holds(samples, rows, classes, bytes, false, launches == 1, device, launches);
            }
            if (rows > 1) holds(samples, rows, classes, bytes, true, false, device, 1);
          }
        }
      }
    }
  }
}

CrossEntropyPlan on_h200(int64_t samples, int64_t rows, int64_t classes, int bytes) {
  return plan_cross_entropy(samples, rows, classes, bytes, false, false, kH200);
}

void rows_are_read_once_where_they_fit() {
  const CrossEntropyPlan plan = on_h200(8192, 1, 32000, 2);  // 64 000 bytes
  CHECK_EQUAL(plan.threads, 512);
  CHECK_EQUAL(plan.shared_packs, 0);
  const CrossEntropyPlan longer = on_h200(4096, 1, 128256, 2);
  CHECK_EQUAL(longer.threads, 1024);
  CHECK_EQUAL(longer.shared_packs + kHeldPacks * longer.row_threads, 128256 * 2 / 16);
  const CrossEntropyPlan between = on_h200(4096, 1, 50304, 2);  // two blocks fit
  CHECK_EQUAL(between.threads, 512);
  CHECK(between.shared_packs > 0);
}

void small_batches_take_one_block() {
  CHECK_EQUAL(on_h200(64, 1, 10, 4).units, 1);
  CHECK(on_h200(1024, 1, 100, 4).units > 1);
}

void chunks_are_even_and_small() {
  using adapruner::chunk_rows;
  CHECK_EQUAL(chunk_rows(0, 100, 1000, 1), 0);
  CHECK_EQUAL(chunk_rows(10, 100, 1000, 1), 10);
  CHECK_EQUAL(chunk_rows(11, 100, 1000, 1), 6);
  CHECK_EQUAL(chunk_rows(1000, 5000, 1000, 64), 63);  // 16 chunks
  CHECK_EQUAL(chunk_rows(3, 5000, 1000, 64), 3);
}

}  // namespace

int main() {
  every_plan();
  rows_are_read_once_where_they_fit();
  small_batches_take_one_block();
  chunks_are_even_and_small();
  return check::failures() != 0;
}
