// ADAPRUNER_HD marks the functions of csrc/math/ as callable from the host and, under nvcc, from
// the device.
//
// On the host they are always inlined. The same header is compiled for several instruction sets,
// and a shared copy that is not inlined could contain instructions that this processor cannot run.
#pragma once

#ifdef __CUDACC__
#define ADAPRUNER_HD __host__ __device__
#else
#define ADAPRUNER_HD __attribute__((always_inline))
#endif
