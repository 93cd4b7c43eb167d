#include "operators.h"

namespace flexmoe::operators {
namespace {

constexpr int64_t kMaxStep = 1024;  // of a kernel, stride or dilation

using Pair = std::array<int64_t, 2>;

// The geometry of pooling `size` [N,C,H,W]; fails the call if it is none.
Pool2d make_pool(Arguments& arguments, const std::array<int64_t, 4>& size, const Pair& kernel,
                 const Pair& stride, const Pair& padding, const Pair& dilation) {
  int64_t out[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t room = size[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1;
    // As in torch; more padding would give windows without a single pixel.
    arguments.require(room >= 0 && 2 * padding[i] <= kernel[i], "the window does not fit");
    out[i] = room / stride[i] + 1;
  }
  return {size[0],    size[1],    size[2],     size[3],     kernel[0],   kernel[1], stride[0],
          stride[1],  padding[0], padding[1],  dilation[0], dilation[1], out[0],    out[1]};
}

std::array<int64_t, 4> sizes_of(const View<const float>& x) { return {x[0], x[1], x[2], x[3]}; }

template <class T>
bool is_output(const View<T>& dy, const Pool2d& pool) {
  return dy[0] == pool.batch && dy[1] == pool.channels && dy[2] == pool.out_h &&
         dy[3] == pool.out_w;
}

Pair read_steps(Arguments& arguments) { return arguments.integers<2>(1, kMaxStep); }
Pair read_padding(Arguments& arguments) { return arguments.integers<2>(0, kMaxStep); }

}  // namespace

void mean_pool(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("mean_pool", context, stack);
  const auto x = arguments.floats(4);
  if (!arguments.ready()) return;
  float* y = arguments.output({x[0], x[1]});
  if (!arguments.ready()) return;
  Call(context)->mean_pool(x[0] * x[1], x[2] * x[3], x.data, y);
}

void mean_pool_backward(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("mean_pool_backward", context, stack);
  const auto dy = arguments.floats(2);
  const auto size = arguments.integers<4>(1, INT32_MAX);
  if (!arguments.ready()) return;
  arguments.require(dy[0] == size[0] && dy[1] == size[1], "the gradient does not fit");
  float* dx = arguments.output({size[0], size[1], size[2], size[3]});
  if (!arguments.ready()) return;
  Call(context)->mean_pool_backward(size[0] * size[1], size[2] * size[3], dy.data, dx);
}

void avg_pool2d(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("avg_pool2d", context, stack);
  const auto x = arguments.floats(4);
  const Pair kernel = read_steps(arguments);
  const Pair stride = read_steps(arguments);
  const Pair padding = read_padding(arguments);
  if (!arguments.ready()) return;
  const Pool2d pool = make_pool(arguments, sizes_of(x), kernel, stride, padding, {1, 1});
  float* y = arguments.output({pool.batch, pool.channels, pool.out_h, pool.out_w});
  if (!arguments.ready()) return;
  Call(context)->avg_pool2d(pool, x.data, y);
}

void avg_pool2d_backward(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("avg_pool2d_backward", context, stack);
  const auto dy = arguments.floats(4);
  const auto size = arguments.integers<4>(1, INT32_MAX);
  const Pair kernel = read_steps(arguments);
  const Pair stride = read_steps(arguments);
  const Pair padding = read_padding(arguments);
  if (!arguments.ready()) return;
  const Pool2d pool = make_pool(arguments, size, kernel, stride, padding, {1, 1});
  arguments.require(is_output(dy, pool), "the gradient does not fit");
  float* dx = arguments.output({size[0], size[1], size[2], size[3]});
  if (!arguments.ready()) return;
  Call(context)->avg_pool2d_backward(pool, dy.data, dx);
}

void max_pool2d(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("max_pool2d", context, stack);
  const auto x = arguments.floats(4);
  const Pair kernel = read_steps(arguments);
  const Pair stride = read_steps(arguments);
  const Pair padding = read_padding(arguments);
  const Pair dilation = read_steps(arguments);
  if (!arguments.ready()) return;
  const Pool2d pool = make_pool(arguments, sizes_of(x), kernel, stride, padding, dilation);
  float* y = arguments.output({pool.batch, pool.channels, pool.out_h, pool.out_w});
  int64_t* indices = arguments.long_output({pool.batch, pool.channels, pool.out_h, pool.out_w});
  if (!arguments.ready()) return;
  Call(context)->max_pool2d(pool, x.data, y, indices);
}

void max_pool2d_backward(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("max_pool2d_backward", context, stack);
  const auto dy = arguments.floats(4);
  const auto indices = arguments.longs(4);
  const auto size = arguments.integers<4>(1, INT32_MAX);
  if (!arguments.ready()) return;
  Pool2d pool{};
  pool.batch = size[0];
  pool.channels = size[1];
  pool.height = size[2];
  pool.width = size[3];
  pool.out_h = dy[2];
  pool.out_w = dy[3];
  arguments.require(is_output(dy, pool) && is_output(indices, pool), "the gradient does not fit");
  float* dx = arguments.output({size[0], size[1], size[2], size[3]});
  if (!arguments.ready()) return;
  for (int64_t i = 0; i < indices.count(); ++i) {
    const int64_t index = indices.data[i];
    arguments.require(0 <= index && index < size[2] * size[3], "an index out of range");
  }
  if (!arguments.ready()) return;
  Call(context)->max_pool2d_backward(pool, dy.data, indices.data, dx);
}

}  // namespace flexmoe::operators
