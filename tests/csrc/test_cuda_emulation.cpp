// Tests of the emulator in tests/csrc/emulation/, and of the reductions of csrc/cuda/device.h in
// it. Kernels must do in the emulator the same as in CUDA. Code that is undefined in CUDA must end
// the program.
#define ADAPRUNER_EMULATE
#include <sys/wait.h>
#include <unistd.h>

#include <numeric>
#include <vector>

#include "../../csrc/cuda/device.h"
#include "check.h"

namespace {

using namespace adapruner::cuda;

// Every thread of a three-dimensional grid runs once.
__global__ void count_visits(int* visits) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  const int z = blockIdx.z * blockDim.z + threadIdx.z;
  ++visits[(z * gridDim.y * blockDim.y + y) * gridDim.x * blockDim.x + x];
}

void threads_and_blocks() {
  std::vector<int> visits(6 * 20 * 12);
  launch(count_visits, dim3(2, 4, 3), dim3(3, 5, 4), 0, nullptr, visits.data());
  for (const int count : visits) CHECK_EQUAL(count, 1);
  launch(count_visits, 0, 32, 0, nullptr, visits.data());  // launches nothing
  CHECK_EQUAL(visits[0], 1);
}

// Reverses the part of a block through shared memory of both kinds. The result is wrong without
// barriers.
__global__ void reverse(const int* in, int* out) {
  __shared__ int fixed[1024];
  int* dynamic = dynamic_shared<int>();
  const int i = threadIdx.x, last = blockDim.x - 1, first = blockIdx.x * blockDim.x;
  fixed[i] = in[first + i];
  __syncthreads();
  dynamic[i] = fixed[last - i];
  __syncthreads();
  out[first + i] = dynamic[last - i] - dynamic[i];
}

void barriers_and_shared_memory() {
  for (const int threads : {1, 7, 33, 1024}) {
    std::vector<int> in(3 * threads), out(in.size(), -1);
    std::iota(in.begin(), in.end(), 5);
    launch(reverse, 3, threads, threads * sizeof(int), nullptr, in.data(), out.data());
    for (int i = 0; i < 3 * threads; ++i) {
      CHECK_EQUAL(out[i], 2 * (i % threads) - (threads - 1));
    }
  }
}

// Threads that return early are not waited for. The others are counted.
__global__ void some_leave(int stay, int* counts) {
  if (static_cast<int>(threadIdx.x) >= stay) return;
  const int odd = __syncthreads_count(threadIdx.x % 2);
  const int any = __syncthreads_or(threadIdx.x == 40), all = __syncthreads_and(threadIdx.x < 70);
  if (threadIdx.x == 0) {
    counts[0] = odd;
    counts[1] = any;
    counts[2] = all;
    counts[3] = __popc(__activemask());
  }
}

void early_exit() {
  for (const int stay : {1, 33, 64, 70, 71, 96}) {
    int counts[4] = {-1, -1, -1, -1};
    launch(some_leave, 1, 96, 0, nullptr, stay, counts);
    CHECK_EQUAL(counts[0], stay / 2);
    CHECK_EQUAL(counts[1], int(stay > 40));
    CHECK_EQUAL(counts[2], int(stay <= 70));
  }
}

// The result of each lane from every kind of shuffle and vote.
__global__ void shuffles(long long* out) {
  const int i = threadIdx.x;
  const long long value = 1000 + i;
  long long* mine = out + i * 12;
  mine[0] = __shfl_sync(kFullWarp, value, 5);
  mine[1] = __shfl_sync(kFullWarp, value, 9, 8);
  mine[2] = __shfl_xor_sync(kFullWarp, value, 3);
  mine[3] = __shfl_down_sync(kFullWarp, value, 4);
  mine[4] = __shfl_up_sync(kFullWarp, value, 4);
  mine[5] = __shfl_down_sync(kFullWarp, value, 3, 16);
  mine[6] = __ballot_sync(kFullWarp, i % 3 == 0);
  mine[7] = __any_sync(kFullWarp, i == 63);
  mine[8] = __all_sync(kFullWarp, i >= 32);
  mine[9] = __match_any_sync(kFullWarp, i % 5);
  mine[10] = __reduce_add_sync(kFullWarp, i);
  mine[11] = 0;
  if (i % 2 == 0) mine[11] = __shfl_sync(0x55555555u, i, 2);  // a part of a warp
  __syncwarp();
}

void warp_operations() {
  std::vector<long long> out(64 * 12);
  launch(shuffles, 1, 64, 0, nullptr, out.data());
  for (int i = 0; i < 64; ++i) {
    const int first = i / 32 * 32, lane = i % 32;
    const long long* mine = &out[i * 12];
    CHECK_EQUAL(mine[0], 1000 + first + 5);
    CHECK_EQUAL(mine[1], 1000 + i / 8 * 8 + 1);
    CHECK_EQUAL(mine[2], 1000 + (i ^ 3));
    CHECK_EQUAL(mine[3], 1000 + (lane < 28 ? i + 4 : i));
    CHECK_EQUAL(mine[4], 1000 + (lane >= 4 ? i - 4 : i));
    CHECK_EQUAL(mine[5], 1000 + (i % 16 < 13 ? i + 3 : i));
    unsigned thirds = 0, same = 0;
    for (int l = 0; l < 32; ++l) {
      thirds |= unsigned((first + l) % 3 == 0) << l;
      same |= unsigned((first + l) % 5 == i % 5) << l;
    }
    CHECK_EQUAL(static_cast<unsigned>(mine[6]), thirds);
    CHECK_EQUAL(mine[7], first / 32);
    CHECK_EQUAL(mine[8], first / 32);
    CHECK_EQUAL(static_cast<unsigned>(mine[9]), same);
    CHECK_EQUAL(mine[10], 32 * first + 496);
    CHECK_EQUAL(mine[11], i % 2 == 0 ? first + 2 : 0);
  }
}

__global__ void count_everything(int* ints, unsigned long long* wide, float* real, int64_t* sum) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(ints, 1);
  atomicMax(ints + 1, i);
  atomicMin(ints + 2, -i);
  atomicOr(ints + 3, 1 << i % 32);
  atomicAnd(ints + 4, ~(1 << i % 31));
  atomicCAS(ints + 5, 0, 7);
  atomicExch(ints + 6, 9);
  atomicXor(ints + 7, 1 << i % 4);
  atomicAdd(wide, 1ull << 40);
  atomicAdd(real, 0.5f);
  atomic_add(sum, int64_t{-3});
}

void atomics() {
  int ints[8] = {0, 0, 0, 0, -1, 0, 0, 0};
  unsigned long long wide = 0;
  float real = 0;
  int64_t sum = 0;
  launch(count_everything, 5, 64, 0, nullptr, ints, &wide, &real, &sum);
  const int expected[8] = {320, 319, -319, -1, int(0x80000000), 7, 9, 0};
  for (int i = 0; i < 8; ++i) CHECK_EQUAL(ints[i], expected[i]);
  CHECK_EQUAL(wide, 320ull << 40);
  CHECK_EQUAL(real, 160.0f);
  CHECK_EQUAL(sum, int64_t{-960});
}

__global__ void sum_block(const float* in, float* sums, float* largest) {
  const float value = in[threadIdx.x];
  const float sum = block_reduce<Sum>(value, 0.0f);
  const float maximum = block_reduce<Maximum>(value, -INFINITY);
  sums[threadIdx.x] = sum;
  largest[threadIdx.x] = maximum;
}

void reductions() {
  for (const int threads : {32, 64, 96, 256, 1024}) {
    std::vector<float> in(threads), sums(threads), largest(threads);
    for (int i = 0; i < threads; ++i) in[i] = static_cast<float>((i * 37) % 101 - 50) / 8;
    launch(sum_block, 1, threads, 0, nullptr, in.data(), sums.data(), largest.data());
    const float sum = std::accumulate(in.begin(), in.end(), 0.0f);  // exact for sums of this size
    for (int i = 0; i < threads; ++i) {
      CHECK_EQUAL(sums[i], sum);
      CHECK_EQUAL(largest[i], *std::max_element(in.begin(), in.end()));
    }
  }
}

// The nearest representable number, by a search over all of them.
void halves() {
  for (unsigned bits = 0; bits < 0x7c00; ++bits) {
    const __half x{static_cast<uint16_t>(bits)}, next{static_cast<uint16_t>(bits + 1)};
    const float value = __half2float(x), after = __half2float(next);
    CHECK(value < after);
    CHECK_EQUAL(__float2half_rn(value).bits, bits);
    CHECK_EQUAL(__float2half_rn(-value).bits, bits | 0x8000);
    const float middle = bits + 1 < 0x7c00 ? (value + after) / 2 : 65520.0f;
    CHECK_EQUAL(__float2half_rn(middle).bits, bits + bits % 2);
    CHECK_EQUAL(__float2half_rn(std::nextafter(middle, 0.0f)).bits, bits);
    CHECK_EQUAL(__float2half_rn(std::nextafter(middle, 1e9f)).bits, bits + 1);
  }
  for (unsigned bits = 0; bits < 0x7f80; ++bits) {
    const __nv_bfloat16 x{static_cast<uint16_t>(bits)};
    const float value = __bfloat162float(x);
    const float middle = std::bit_cast<float>(bits << 16 | 0x8000);
    CHECK_EQUAL(__float2bfloat16_rn(value).bits, bits);
    CHECK_EQUAL(__float2bfloat16_rn(middle).bits, bits + bits % 2);
    CHECK_EQUAL(__float2bfloat16_rn(std::nextafter(middle, INFINITY)).bits, bits + 1);
  }
  CHECK(std::isnan(__half2float(__float2half_rn(NAN))));
  CHECK(std::isnan(__bfloat162float(__float2bfloat16_rn(NAN))));
}

// --- what must end the program -------------------------------------------------------------------

__global__ void different_barriers(int*) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void lane_missing(int*) {
  if (threadIdx.x % 32 == 3) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}
__global__ void reads_a_lane_that_left(int* out) {
  if (threadIdx.x == 3) return;
  *out = __shfl_sync(kFullWarp, 1, 3);
}
__global__ void not_in_its_mask(int*) { __syncwarp(0x1); }
__global__ void beyond_dynamic_memory(int*) { dynamic_shared<char>()[threadIdx.x + 16] = 1; }
__global__ void beyond_global_memory(int* out) { out[threadIdx.x] = 1; }

void ends(void (*kernel)(int*)) {
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(0);
    std::vector<int> out(1);
    launch(kernel, 1, 64, 16, nullptr, out.data());
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(!(WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

}  // namespace

int main() {
  for (const auto kernel : {different_barriers, lane_missing, reads_a_lane_that_left,
                            not_in_its_mask, beyond_dynamic_memory, beyond_global_memory}) {
    ends(kernel);
  }
  emulation::each_order([] {
    threads_and_blocks();
    barriers_and_shared_memory();
    early_exit();
    warp_operations();
    atomics();
    reductions();
  });
  halves();
  return check::failures() != 0;
}
