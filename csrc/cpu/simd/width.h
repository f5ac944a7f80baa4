// The number of 32-bit values in a vector of the instruction set that a file is compiled for.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace adapruner::ADAPRUNER_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

}  // namespace
}  // namespace adapruner::ADAPRUNER_ISA
