// Selects at run time among loops that are compiled once for each instruction set.
//
// A file in csrc/cpu/simd/ is compiled with ADAPRUNER_ISA defined as the namespace of its functions
// (isa_baseline; on x86-64 also isa_v3 = AVX2 and isa_v4 = AVX-512). Its header declares them with
// ADAPRUNER_FOR_EACH_ISA. Callers write ADAPRUNER_DISPATCH(name, arguments…).
#pragma once

namespace adapruner {

enum class Isa { kBaseline, kV3, kV4 };

// The best instruction set of this processor, or a lower one that the environment variable
// ADAPRUNER_ISA (baseline, v3, v4) names when the library is loaded.
Isa current_isa();
const char* isa_name(Isa isa);

}  // namespace adapruner

#ifdef ADAPRUNER_X86_64
#define ADAPRUNER_FOR_EACH_ISA(DECLARE) DECLARE(isa_baseline) DECLARE(isa_v3) DECLARE(isa_v4)
#define ADAPRUNER_DISPATCH(name, ...)                                                \
  (::adapruner::current_isa() == ::adapruner::Isa::kV4   ? isa_v4::name(__VA_ARGS__) \
   : ::adapruner::current_isa() == ::adapruner::Isa::kV3 ? isa_v3::name(__VA_ARGS__) \
                                                         : isa_baseline::name(__VA_ARGS__))
#else
#define ADAPRUNER_FOR_EACH_ISA(DECLARE) DECLARE(isa_baseline)
#define ADAPRUNER_DISPATCH(name, ...) (isa_baseline::name(__VA_ARGS__))
#endif
