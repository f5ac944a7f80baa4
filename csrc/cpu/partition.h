// A range of indices cut into blocks that fit a core's cache, and the blocks into one run per task.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace adapruner::cpu {

// Whole bytes and words of a bit mask: two tasks never write the same one.
constexpr int64_t kBlock = 4096;

class Partition {
 public:
  // At most `most` tasks, unless a run would exceed 2³¹ indices: offsets in a run fit 32 bits.
  explicit Partition(int64_t n, int64_t most = at::get_num_threads())
      : n_(n), blocks_((n + kBlock - 1) / kBlock) {
    constexpr int64_t kWorthwhile = 8;  // blocks: below, waking a thread costs more than it saves
    constexpr int64_t kLongest = (int64_t{1} << 31) / kBlock;
    const int64_t wanted = std::min(most, blocks_ / kWorthwhile);
    tasks_ = std::max({wanted, (blocks_ + kLongest - 1) / kLongest, int64_t{1}});
  }

  int64_t tasks() const { return tasks_; }
  int64_t begin(int64_t task) const { return std::min(n_, blocks_ * task / tasks_ * kBlock); }
  int64_t end(int64_t task) const { return begin(task + 1); }

  // f(task) for every task, in parallel unless there is too little to do. Every wait for other
  // threads can cost a time slice where the processor is shared.
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

  // f(begin, size) for the blocks of a task in ascending order.
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
