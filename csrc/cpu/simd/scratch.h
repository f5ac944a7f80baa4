// An array of scratch memory. It is not a std::vector: a template of the standard library that is
// instantiated in these files could become the copy of the whole module, with instructions that not
// every processor has.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "width.h"

namespace adapruner::ADAPRUNER_ISA {
namespace {

template <typename A>
class Scratch {
 public:
  explicit Scratch(int64_t n)
      : data_(static_cast<A*>(std::malloc(static_cast<size_t>(n + 1) * sizeof(A)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* data() const { return data_; }

 private:
  A* data_;
};

}  // namespace
}  // namespace adapruner::ADAPRUNER_ISA
