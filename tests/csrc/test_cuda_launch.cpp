// csrc/cuda/launch.h in the emulator: errors, shared memory, grids.
#define ADAPRUNER_EMULATE
#include <stdexcept>

#include "../../csrc/cuda/device.h"
#include "check.h"

namespace {

using namespace adapruner::cuda;

__global__ void count_blocks(int* blocks) {
  if (threadIdx.x == 0) atomicAdd(blocks, 1);
}
__global__ void count_others(int* blocks) {
  if (threadIdx.x == 0) atomicAdd(blocks, 1);
}

void a_launch_that_failed_leaves_no_error_behind() {
  int blocks = 0;
  emulation::runtime().next_launch = cudaErrorLaunchOutOfResources;
  bool thrown = false;
  try {
    launch(count_blocks, 2, 32, 0, nullptr, &blocks);
  } catch (const std::runtime_error& error) {
    thrown = std::string(error.what()).find("was not launched") != std::string::npos;
  }
  CHECK(thrown);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK_EQUAL(blocks, 0);
  launch(count_blocks, 2, 32, 0, nullptr, &blocks);
  CHECK_EQUAL(blocks, 2);
}

// If a small launch lowered the limit, a large launch of another thread would fail.
void the_limit_of_shared_memory_is_set_once_to_all_there_is() {
  const auto& runtime = emulation::runtime();
  const int before = runtime.limits_set;
  int blocks = 0;
  for (const size_t bytes : {200 * 1024, 60 * 1024, 1024, 227 * 1024}) {
    launch(count_blocks, 1, 32, bytes, nullptr, &blocks);
    CHECK_EQUAL(runtime.limits_set, before + 1);
    CHECK_EQUAL(runtime.limits.begin()->second, 227 * 1024);
  }
  CHECK_EQUAL(blocks, 4);
  launch(count_others, 1, 32, size_t{100 * 1024}, nullptr, &blocks);
  CHECK_EQUAL(runtime.limits_set, before + 2);
}

void grids_are_what_the_device_has_at_a_time() {
  const int resident = emulation::kResidentBlocks;
  for (const int64_t units : {0, 1, 7, 1000}) {
    for (const int multiprocessors : {1, 4}) {
      int blocks = 0;
      launch_strided(count_blocks, units, 2, multiprocessors, 64, nullptr, &blocks);
      const int64_t needed = units / 2 + units % 2, most = multiprocessors * resident;
      CHECK_EQUAL(blocks, static_cast<int>(std::min(needed, most)));
    }
  }
}

}  // namespace

int main() {
  a_launch_that_failed_leaves_no_error_behind();
  the_limit_of_shared_memory_is_set_once_to_all_there_is();
  grids_are_what_the_device_has_at_a_time();
  return check::failures() != 0;
}
