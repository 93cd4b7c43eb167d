#include "operators/table.h"

#include "operators/operators.h"

namespace flexmoe {

const Operator* find_operator(const std::string& name) {
  using namespace operators;
  static constexpr Operator kTable[] = {
      {"flexmoe::gemm.out", "TTtbbbO", gemm},
      {"flexmoe::sum_rows.out", "TO", sum_rows},
      {"flexmoe::conv2d.out", "TTtIIIibO", conv2d},
      {"flexmoe::conv2d_backward_input.out", "TTIIIIiO", conv2d_backward_input},
      {"flexmoe::conv2d_backward_weight.out", "TTIIIIiO", conv2d_backward_weight},
      {"flexmoe::sum_channels.out", "TO", sum_channels},
      {"flexmoe::group_norm.out", "TttidbOOO", group_norm},
      {"flexmoe::group_norm_backward.out", "TTTTttiOOO", group_norm_backward},
      {"flexmoe::relu.out", "TO", relu},
      {"flexmoe::relu_backward.out", "TTO", relu_backward},
      {"flexmoe::add.out", "TTO", add},
      {"flexmoe::mean_pool.out", "TO", mean_pool},
      {"flexmoe::mean_pool_backward.out", "TIO", mean_pool_backward},
      {"flexmoe::avg_pool2d.out", "TIIIO", avg_pool2d},
      {"flexmoe::avg_pool2d_backward.out", "TIIIIO", avg_pool2d_backward},
      {"flexmoe::max_pool2d.out", "TIIIIOO", max_pool2d},
      {"flexmoe::max_pool2d_backward.out", "TTIO", max_pool2d_backward},
      {"flexmoe::stack.out", "LO", stack},
      {"flexmoe::select.out", "TiO", select},
      {"flexmoe::mixture_cross_entropy.out", "TTTTTOOOO", mixture_cross_entropy},
      {"flexmoe::balanced_mixture_cross_entropy.out", "TTTTTdOOOO",
       balanced_mixture_cross_entropy},
      {"flexmoe::mixture_evaluate.out", "TTTTTOO", mixture_evaluate},
  };
  for (const Operator& entry : kTable) {
    if (name == entry.name) return &entry;
  }
  return nullptr;
}

}  // namespace flexmoe
