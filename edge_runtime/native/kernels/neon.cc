// aarch64, which always has NEON.
#if !defined(__aarch64__)
#error "compile this file for aarch64"
#endif
#define FLEXMOE_ISA neon
#include "kernels.inc"
