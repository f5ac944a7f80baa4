// The grid of the emulator. Blocks run one after another, and the threads of a block are fibers.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "types.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

using Where = std::source_location;

enum class Wait { kNothing, kBlock, kWarp, kDone };

// The data that a warp operation gives to each of its lanes.
struct Exchange {
  unsigned present;     // lanes that take part
  uint64_t values[32];  // their values
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  Wait wait = Wait::kDone;
  Where where;
  bool predicate = false;  // at a barrier of the block
  int count = 0;           // result of the barrier
  unsigned mask = 0;       // of a warp operation
  uint64_t value = 0;
  Exchange got;
};

struct State {
  dim3 thread_index, block_index, block_size, grid_size;
  std::vector<std::unique_ptr<Fiber>> fibers;  // reused by later launches
  unsigned threads = 0, current = 0;
  ucontext_t scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  std::function<void()> kernel;
  std::vector<char> dynamic;
  uint64_t order = 0;
};

inline State& state() {
  static State only;
  return only;
}

[[noreturn]] inline void fail(const std::string& what, Where where) {
  const State& s = state();
  std::fprintf(stderr, "%s:%u: thread (%u, %u, %u) of block (%u, %u, %u) %s\n", where.file_name(),
               unsigned(where.line()), s.thread_index.x, s.thread_index.y, s.thread_index.z,
               s.block_index.x, s.block_index.y, s.block_index.z, what.c_str());
  std::abort();
}

constexpr size_t kStackBytes = 256 * 1024;

// AddressSanitizer is told about the stacks. Otherwise it takes a switch for a wild jump.
inline void to_scheduler() {
  State& s = state();
  Fiber& fiber = *s.fibers[s.current];
#ifdef __SANITIZE_ADDRESS__
  void* fake;
  __sanitizer_start_switch_fiber(&fake, s.scheduler_stack, s.scheduler_size);
  swapcontext(&fiber.context, &s.scheduler);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  swapcontext(&fiber.context, &s.scheduler);
#endif
}

inline void fiber_main() {
  State& s = state();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &s.scheduler_stack, &s.scheduler_size);
#endif
  for (;;) {  // a fiber is reused for the thread with the same number in the next block
    s.kernel();
    s.fibers[s.current]->wait = Wait::kDone;
    to_scheduler();
  }
}

inline void resume(unsigned thread) {
  State& s = state();
  Fiber& fiber = *s.fibers[thread];
  s.current = thread;
  s.thread_index = fiber.index;
  fiber.wait = Wait::kNothing;
#ifdef __SANITIZE_ADDRESS__
  void* fake;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStackBytes);
  swapcontext(&s.scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  swapcontext(&s.scheduler, &fiber.context);
#endif
}

inline int lane() { return static_cast<int>(state().current % 32); }

// Lanes of this warp that have not returned.
inline unsigned alive() {
  const State& s = state();
  const unsigned first = s.current / 32 * 32;
  unsigned mask = 0;
  for (unsigned i = first; i < std::min(first + 32, s.threads); ++i) {
    if (s.fibers[i]->wait != Wait::kDone) mask |= 1u << (i - first);
  }
  return mask;
}

// The number of threads whose predicate is true. Threads that have returned are not waited for.
inline int block_barrier(bool predicate, Where where) {
  Fiber& fiber = *state().fibers[state().current];
  fiber.wait = Wait::kBlock;
  fiber.where = where;
  fiber.predicate = predicate;
  to_scheduler();
  return fiber.count;
}

inline Exchange exchange(unsigned mask, uint64_t value, Where where) {
  Fiber& fiber = *state().fibers[state().current];
  if (!(mask >> lane() & 1)) fail("is not in the mask of its own warp operation", where);
  fiber.wait = Wait::kWarp;
  fiber.where = where;
  fiber.mask = mask;
  fiber.value = value;
  to_scheduler();
  return fiber.got;
}

inline bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

inline std::string place(const Where& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

// Completes a warp operation if all of its lanes have reached it. Returns true if so.
inline bool release_warp(unsigned thread) {
  State& s = state();
  const unsigned first = thread / 32 * 32;
  const Fiber& one = *s.fibers[thread];
  Exchange got{};
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(one.mask >> lane & 1)) continue;
    if (first + lane >= s.threads) continue;
    const Fiber& other = *s.fibers[first + lane];
    if (other.wait == Wait::kDone) continue;
    if (other.wait != Wait::kWarp || other.mask != one.mask) return false;
    if (!same_place(other.where, one.where)) return false;
    got.present |= 1u << lane;
    got.values[lane] = other.value;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(got.present >> lane & 1)) continue;
    s.fibers[first + lane]->got = got;
    s.fibers[first + lane]->wait = Wait::kNothing;
  }
  return true;
}

// Completes a barrier of the block if all threads have reached it.
inline bool release_block() {
  State& s = state();
  int count = 0;
  const Fiber* first = nullptr;
  for (unsigned i = 0; i < s.threads; ++i) {
    const Fiber& fiber = *s.fibers[i];
    if (fiber.wait == Wait::kDone) continue;
    if (fiber.wait != Wait::kBlock) return false;
    if (first == nullptr) first = &fiber;
    if (!same_place(fiber.where, first->where)) {
      s.thread_index = fiber.index;
      fail("waits here while another thread waits at the barrier of " + place(first->where),
           fiber.where);
    }
    count += fiber.predicate;
  }
  for (unsigned i = 0; i < s.threads; ++i) {
    Fiber& fiber = *s.fibers[i];
    if (fiber.wait == Wait::kDone) continue;
    fiber.count = count;
    fiber.wait = Wait::kNothing;
  }
  return true;
}

inline void run_block(const std::vector<unsigned>& order) {
  State& s = state();
  unsigned done = 0;
  for (unsigned i = 0; i < s.threads; ++i) s.fibers[i]->wait = Wait::kNothing;
  while (done < s.threads) {
    bool progress = false;
    for (const unsigned thread : order) {
      Fiber& fiber = *s.fibers[thread];
      if (fiber.wait == Wait::kWarp) release_warp(thread);
      if (fiber.wait != Wait::kNothing) continue;
      resume(thread);
      progress = true;
      done += fiber.wait == Wait::kDone;
    }
    if (progress || done == s.threads || release_block()) continue;
    for (const unsigned thread : order) {
      const Fiber& fiber = *s.fibers[thread];
      if (fiber.wait == Wait::kDone) continue;
      s.thread_index = fiber.index;
      fail(fiber.wait == Wait::kWarp ? "waits for lanes of its warp that never come"
                                     : "waits for threads of its block that never come",
           fiber.where);
    }
  }
}

// Sets the order of threads and blocks: 0 is ascending, 1 is descending, others are shuffled.
inline void set_order(uint64_t order) { state().order = order; }

template <typename Number>
void put_in_order(std::vector<Number>& numbers, uint64_t order) {
  if (order == 1) std::reverse(numbers.begin(), numbers.end());
  if (order < 2) return;
  std::mt19937_64 random(order);
  std::shuffle(numbers.begin(), numbers.end(), random);
}

// Calls `work` under several orders. It launches kernels and checks their results.
template <typename Work>
void each_order(Work work) {
  for (const uint64_t order : {0, 1, 2, 3}) {
    set_order(order);
    work();
  }
  set_order(0);
}

inline void* dynamic_shared() { return state().dynamic.data(); }

inline void grow(unsigned threads) {
  State& s = state();
  while (s.fibers.size() < threads) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack.reset(new char[kStackBytes]);  // not written, so it costs no memory
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, fiber_main, 0);
    s.fibers.push_back(std::move(fiber));
  }
}

inline void run(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel) {
  State& s = state();
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const Where here = Where::current();
  if (threads < 1 || threads > 1024 || block.z > 64) fail("has a block of a wrong size", here);
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) fail("has too many blocks", here);
  s.threads = static_cast<unsigned>(threads);
  s.block_size = block;
  s.grid_size = grid;
  s.kernel = std::move(kernel);
  grow(s.threads);
  std::vector<unsigned> order(s.threads);
  std::iota(order.begin(), order.end(), 0u);
  put_in_order(order, s.order);
  for (unsigned i = 0; i < s.threads; ++i) {
    s.fibers[i]->index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), uint64_t{0});
  put_in_order(blocks, s.order);
  for (const uint64_t number : blocks) {
    s.block_index = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y),
                     unsigned(number / grid.x / grid.y)};
    s.dynamic.assign(shared_bytes, char(0xa5));  // garbage
    run_block(order);
  }
}

}  // namespace emulation
