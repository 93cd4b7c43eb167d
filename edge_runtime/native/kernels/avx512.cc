// x86-64 with AVX-512. Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
// -mprefer-vector-width=512.
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || \
    !defined(__AVX512VL__) || !defined(__FMA__)
#error "compile this file with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma"
#endif
#define FLEXMOE_ISA avx512
#include "kernels.inc"
