// The kernels' whole interface: float32, contiguous, raw pointers, sizes in elements.
//
// Nothing here checks its arguments: the operators did. Outputs never overlap inputs unless said.
// Scratch memory comes from the caller's Workspace, so that the session can count it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flexmoe {

class Threads;  // threads.h

// Bump memory for one kernel call. `take` returns 64-byte aligned memory that stays valid until
// the call ends, or nullptr when there is none: the kernel then returns false.
class Workspace {
 public:
  virtual void* take(size_t bytes) = 0;

 protected:
  ~Workspace() = default;
};

struct Context {
  Threads* threads;      // never null
  Workspace* workspace;  // never null
  // Only the scratch is asked for: a kernel takes it all, returns true, and touches no array.
  bool measures = false;
};

struct Gemm {
  int64_t m, n, k;
  bool transpose_a;  // a is stored [k, m] instead of [m, k]
  bool transpose_b;  // b is stored [n, k] instead of [k, n]
  bool relu;
};

struct Conv2d {
  int64_t batch, in_channels, height, width;
  int64_t out_channels, kernel_h, kernel_w;
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t groups;
  int64_t out_h, out_w;
  bool relu;  // forward only
};

struct GroupNorm {
  int64_t batch, channels, plane, groups;  // plane = height * width
  float epsilon;
  bool relu;
};

struct Pool2d {
  int64_t batch, channels, height, width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t out_h, out_w;
};

struct Mixture {
  int64_t batch, experts, slots, classes;
  float balance = 0.0f;  // the coefficient of the balance term; 0 leaves it out
};

// One optimizer step over one tensor; all arrays have `size` elements and change in place.
struct SgdRates {
  float learning_rate, momentum, weight_decay;
};
struct AdamWRates {
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  float correction1, correction2;  // 1 - beta1^t, 1 - beta2^t at step t = 1, 2, ...
};

// A function that needs scratch returns false if the workspace has none left, and then has written
// nothing that matters. `bias`, `weight`, `y` and `velocity` may be null where marked "?".
struct Kernels {
  const char* isa;
  int64_t vector_floats;

  // c [m, n] = op(a) op(b) (+ bias? [n]), then ReLU.
  bool (*gemm)(const Context&, const Gemm&, const float* a, const float* b, const float* bias,
               float* c);
  void (*sum_rows)(int64_t rows, int64_t columns, const float* x, float* sums);
  void (*sum_channels)(int64_t batch, int64_t channels, int64_t plane, const float* x, float* sums);

  bool (*conv2d)(const Context&, const Conv2d&, const float* x, const float* weight,
                 const float* bias, float* y);
  bool (*conv2d_backward_input)(const Context&, const Conv2d&, const float* dy, const float* weight,
                                float* dx);
  bool (*conv2d_backward_weight)(const Context&, const Conv2d&, const float* dy, const float* x,
                                 float* dweight);

  // mean, rstd [batch, groups].
  void (*group_norm)(const Context&, const GroupNorm&, const float* x, const float* weight,
                     const float* bias, float* y, float* mean, float* rstd);
  // With y?, dy counts only where y > 0. dx, dweight [channels], dbias [channels].
  bool (*group_norm_backward)(const Context&, const GroupNorm&, const float* dy, const float* x,
                              const float* mean, const float* rstd, const float* weight,
                              const float* y, float* dx, float* dweight, float* dbias);

  void (*relu)(int64_t size, const float* x, float* y);  // NaN stays NaN
  void (*relu_backward)(int64_t size, const float* dy, const float* y, float* dx);
  void (*add)(int64_t size, const float* a, const float* b, float* sum);  // sum may be a or b

  void (*mean_pool)(int64_t planes, int64_t plane, const float* x, float* y);
  void (*mean_pool_backward)(int64_t planes, int64_t plane, const float* dy, float* dx);
  void (*avg_pool2d)(const Pool2d&, const float* x, float* y);
  void (*avg_pool2d_backward)(const Pool2d&, const float* dy, float* dx);
  void (*max_pool2d)(const Pool2d&, const float* x, float* y, int64_t* indices);
  void (*max_pool2d_backward)(const Pool2d&, const float* dy, const int64_t* indices, float* dx);

  // scores [batch, experts], outputs [slots, batch, classes], y [batch], chosen [slots], weight
  // [batch]; loss [1], stats [slots, 3]; dscores and doutputs like scores and outputs, or both
  // null. The balance term is in dscores alone.
  bool (*mixture_cross_entropy)(const Context&, const Mixture&, const float* scores,
                                const float* outputs, const int64_t* y, const int64_t* chosen,
                                const float* weight, float* loss, float* stats, float* dscores,
                                float* doutputs);

  double (*sum_of_squares)(int64_t size, const float* x);
  bool (*all_finite)(int64_t size, const float* x);
  void (*scale)(int64_t size, float factor, float* x);
  // velocity? is needed with momentum only. As torch.optim.SGD, dampening 0, no Nesterov.
  void (*sgd)(int64_t size, const SgdRates&, const float* gradient, float* weight, float* velocity);
  // As torch.optim.AdamW without amsgrad.
  void (*adamw)(int64_t size, const AdamWRates&, const float* gradient, float* weight, float* m,
                float* v);
};

// The tables that this machine and this build have, the best first; null at the end. Their names:
// "avx512", "avx2" and "baseline", or "neon".
const Kernels* const* usable_kernels();

}  // namespace flexmoe
