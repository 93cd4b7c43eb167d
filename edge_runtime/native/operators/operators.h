// The operators' boxed kernels, by file. Each checks its arguments and fails the call otherwise.
#pragma once

#include "operators/arguments.h"

namespace flexmoe::operators {

// products.cc
void gemm(KernelRuntimeContext& context, Stack stack);
void sum_rows(KernelRuntimeContext& context, Stack stack);
void conv2d(KernelRuntimeContext& context, Stack stack);
void conv2d_backward_input(KernelRuntimeContext& context, Stack stack);
void conv2d_backward_weight(KernelRuntimeContext& context, Stack stack);
void sum_channels(KernelRuntimeContext& context, Stack stack);

// layers.cc
void group_norm(KernelRuntimeContext& context, Stack stack);
void group_norm_backward(KernelRuntimeContext& context, Stack stack);
void relu(KernelRuntimeContext& context, Stack stack);
void relu_backward(KernelRuntimeContext& context, Stack stack);
void add(KernelRuntimeContext& context, Stack stack);
void stack(KernelRuntimeContext& context, Stack stack);
void select(KernelRuntimeContext& context, Stack stack);

// pooling.cc
void mean_pool(KernelRuntimeContext& context, Stack stack);
void mean_pool_backward(KernelRuntimeContext& context, Stack stack);
void avg_pool2d(KernelRuntimeContext& context, Stack stack);
void avg_pool2d_backward(KernelRuntimeContext& context, Stack stack);
void max_pool2d(KernelRuntimeContext& context, Stack stack);
void max_pool2d_backward(KernelRuntimeContext& context, Stack stack);

// mixture.cc
void mixture_cross_entropy(KernelRuntimeContext& context, Stack stack);
void balanced_mixture_cross_entropy(KernelRuntimeContext& context, Stack stack);
void mixture_evaluate(KernelRuntimeContext& context, Stack stack);

}  // namespace flexmoe::operators
