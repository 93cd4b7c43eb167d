// What every machine of the architecture can run. Compiled without flags for an instruction set.
#define FLEXMOE_ISA baseline
#include "kernels.inc"
