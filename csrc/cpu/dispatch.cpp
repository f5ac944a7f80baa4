#include "simd/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace adapruner {
namespace {

Isa best_isa() {
#ifdef ADAPRUNER_X86_64
  // These are the parts of x86-64-v3 and -v4 that compilers use. Every processor that has them has
  // the rest of the level.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? Isa::kV4 : v3 ? Isa::kV3 : Isa::kBaseline;
#else
  return Isa::kBaseline;
#endif
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* asked = std::getenv("ADAPRUNER_ISA");
  if (asked == nullptr) return best;
  for (const Isa isa : {Isa::kBaseline, Isa::kV3}) {
    if (isa < best && std::strcmp(asked, isa_name(isa)) == 0) return isa;
  }
  return best;
}

}  // namespace

Isa current_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

const char* isa_name(Isa isa) {
  return isa == Isa::kV4 ? "v4" : isa == Isa::kV3 ? "v3" : "baseline";
}

}  // namespace adapruner
