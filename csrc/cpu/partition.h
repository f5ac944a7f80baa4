// Cuts a range of indices into blocks that fit a core's cache, and the blocks into one run for each
// task.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace adapruner::cpu {

// A block covers whole bytes and words of a bit mask. So two tasks never write the same one.
constexpr int64_t kBlock = 4096;

class Partition {
 public:
  // At most `most` tasks. There are more if a run would have more than 2³¹ indices, so that offsets
  // in a run fit 32 bits.
  explicit Partition(int64_t n, int64_t most = at::get_num_threads())
      : n_(n), blocks_((n + kBlock - 1) / kBlock) {
    // For fewer blocks, waking a thread costs more than it saves.
    constexpr int64_t kWorthwhile = 8;
    constexpr int64_t kLongest = (int64_t{1} << 31) / kBlock;
    const int64_t wanted = std::min(most, blocks_ / kWorthwhile);
    tasks_ = std::max({wanted, (blocks_ + kLongest - 1) / kLongest, int64_t{1}});
  }

  int64_t tasks() const { return tasks_; }
  int64_t begin(int64_t task) const { return std::min(n_, blocks_ * task / tasks_ * kBlock); }
  int64_t end(int64_t task) const { return begin(task + 1); }

  // Calls f(task) for every task, in parallel if that is worthwhile. Waiting for other threads can
  // cost a time slice on a shared processor.
  template <typename F>
  void each_task(const F& f, bool worthwhile = true) const {
    if (!worthwhile) {
      for (int64_t task = 0; task < tasks_; ++task) f(task);
      return;
    }
    at::parallel_for(0, tasks_, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) f(task);
    });
  }

  // Calls f(begin, size) for each block of a task, in ascending order.
  template <typename F>
  void each_block(int64_t task, const F& f) const {
    const int64_t last = end(task);
    for (int64_t i = begin(task); i < last; i += kBlock) f(i, std::min(kBlock, last - i));
  }

 private:
  int64_t n_;
  int64_t blocks_;
  int64_t tasks_;
};

}  // namespace adapruner::cpu
