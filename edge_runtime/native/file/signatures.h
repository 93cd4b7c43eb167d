// What an operator takes, so that a program's calls can be checked before they run.
#pragma once

#include <string>

namespace flexmoe {

// One letter for each argument of the operator's schema, in order:
//
//   T Tensor     i int, dtype  b bool   d float   s number   I int[]   B bool[]   L Tensor[]
//   t Tensor?    j int?        c bool?  e float?  q number?  J int[]?  D float[]? l Tensor?[]
//   O a tensor that is written
//
// Null for an operator that programs may not use. `name` is such as "aten::add.out".
const char* find_signature(const std::string& name);

}  // namespace flexmoe
