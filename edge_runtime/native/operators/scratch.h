// How much scratch the operators' kernels take.
#pragma once

#include <cstddef>

#include "file/plan.h"
#include "kernels/kernels.h"

namespace flexmoe {

// Of the plan's busiest call, in bytes, with so many threads: what the kernels themselves take when
// they are asked for no more than that. Calls whose arguments do not fit count nothing, for they
// fail when they run; stock operators count for what they usually take. Failure if a kernel cannot
// have its scratch.
size_t scratch_bytes(const Plan& plan, const Kernels& kernels, int threads);

}  // namespace flexmoe
