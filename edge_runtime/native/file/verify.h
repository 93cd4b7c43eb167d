// Whether a program's calls are safe to run, as far as that can be known without running them.
#pragma once

#include "file/plan.h"

namespace flexmoe {

// Failure unless every call has an operator that this runtime knows and arguments of the kinds
// that it takes, reads only what is there, and writes each value once: never an input or a
// constant, and never memory that it reads. What is left to the operators are their shapes.
void verify(const Plan& plan);

}  // namespace flexmoe
