// x86-64 with AVX2 and FMA. Compiled with -mavx2 -mfma.
#if !defined(__AVX2__) || !defined(__FMA__)
#error "compile this file with -mavx2 -mfma"
#endif
#define FLEXMOE_ISA avx2
#include "kernels.inc"
