// Marks the functions of csrc/math/ as callable from the host and, under nvcc, from the device.
//
// On the host they are inlined without exception: the same header is compiled for several
// instruction sets, and a shared out-of-line copy could be one that this processor cannot run.
#pragma once

#ifdef __CUDACC__
#define ADAPRUNER_HD __host__ __device__
#else
#define ADAPRUNER_HD __attribute__((always_inline))
#endif
