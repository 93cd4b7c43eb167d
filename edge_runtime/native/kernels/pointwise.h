// Element by element functions, sums, and what other headers share: lanes and blocked sums.
#pragma once

#include "simd.h"

namespace flexmoe::FLEXMOE_ISA {

// Which lanes of a vector count: all, or the first few at the end of an array.
struct AllLanes {};
struct FirstLanes {
  int64_t count;
};

FLEXMOE_INLINE Vec load_lanes(const float* p, AllLanes) { return load(p); }
FLEXMOE_INLINE Vec load_lanes(const float* p, FirstLanes n) { return load_partial(p, n.count); }
FLEXMOE_INLINE void store_lanes(float* p, AllLanes, Vec v) { store(p, v); }
FLEXMOE_INLINE void store_lanes(float* p, FirstLanes n, Vec v) { store_partial(p, n.count, v); }
FLEXMOE_INLINE Vec splat_lanes(float x, AllLanes) { return splat(x); }
FLEXMOE_INLINE Vec splat_lanes(float x, FirstLanes n) {
  constexpr float kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  return splat(x) * load_partial(kOnes, n.count);
}

// Calls step(i, lanes) for each vector of [0, size), the last of which may not be whole.
template <class Step>
FLEXMOE_INLINE void for_vectors(int64_t size, const Step& step) {
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) step(i, AllLanes{});
  if (i < size) step(i, FirstLanes{size - i});
}

// The sum of term(i, lanes) over [0, size): floats within blocks of 64 vectors, double between.
// `term` gives zeros in the other lanes.
template <class Term>
FLEXMOE_INLINE double blocked_sum(int64_t size, const Term& term) {
  constexpr int64_t kBlock = 64 * kWidth;
  double total = 0.0;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = min_of(begin + kBlock, size);
    Vec a = zeros(), b = zeros(), c = zeros(), d = zeros();
    int64_t i = begin;
    for (; i + 4 * kWidth <= end; i += 4 * kWidth) {
      a += term(i, AllLanes{});
      b += term(i + kWidth, AllLanes{});
      c += term(i + 2 * kWidth, AllLanes{});
      d += term(i + 3 * kWidth, AllLanes{});
    }
    for (; i + kWidth <= end; i += kWidth) a += term(i, AllLanes{});
    if (i < end) b += term(i, FirstLanes{end - i});
    total += static_cast<double>(sum((a + b) + (c + d)));
  }
  return total;
}

FLEXMOE_INLINE double sum_of(const float* x, int64_t size) {
  return blocked_sum(size, [&](int64_t i, auto lanes) { return load_lanes(x + i, lanes); });
}

// Columns of one strip stay in registers for a block of rows; the blocks' sums are added up with
// what their rounding lost (Kahan's summation).
template <int64_t kVectors, class Lanes>
FLEXMOE_INLINE void sum_strip(int64_t rows, int64_t columns, const float* x, Lanes lanes,
                              float* sums) {
  constexpr int64_t kRows = 64;
  Vec total[kVectors] = {}, lost[kVectors] = {};
  for (int64_t begin = 0; begin < rows; begin += kRows) {
    const int64_t end = min_of(begin + kRows, rows);
    Vec block[kVectors] = {};
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t v = 0; v < kVectors; ++v) {
        block[v] += load_lanes(x + row * columns + v * kWidth, lanes);
      }
    }
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vec addend = block[v] - lost[v];
      const Vec next = total[v] + addend;
      lost[v] = (next - total[v]) - addend;
      total[v] = next;
    }
  }
  for (int64_t v = 0; v < kVectors; ++v) store_lanes(sums + v * kWidth, lanes, total[v]);
}

inline void sum_rows(int64_t rows, int64_t columns, const float* x, float* sums) {
  int64_t c = 0;
  for (; c + 4 * kWidth <= columns; c += 4 * kWidth) {
    sum_strip<4>(rows, columns, x + c, AllLanes{}, sums + c);
  }
  for_vectors(columns - c, [=](int64_t i, auto lanes) {
    sum_strip<1>(rows, columns, x + c + i, lanes, sums + c + i);
  });
}

inline void sum_channels(int64_t batch, int64_t channels, int64_t plane, const float* x,
                         float* sums) {
  if (plane == 1) {
    sum_rows(batch, channels, x, sums);
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    // Large planes add up in blocks; small ones share a vector until it holds a block's worth.
    constexpr int64_t kBlock = 64 * kWidth;
    double total = 0.0;
    Vec shared = zeros();
    int64_t held = 0;
    for (int64_t n = 0; n < batch; ++n) {
      const float* p = x + (n * channels + c) * plane;
      if (plane > kBlock) {
        total += sum_of(p, plane);
        continue;
      }
      Vec own = zeros();
      for_vectors(plane, [&](int64_t i, auto lanes) { own += load_lanes(p + i, lanes); });
      shared += own;
      held += kWidth;
      if (held == kBlock || n + 1 == batch) {
        total += static_cast<double>(sum(shared));
        shared = zeros();
        held = 0;
      }
    }
    sums[c] = static_cast<float>(total);
  }
}

inline void relu(int64_t size, const float* x, float* y) {
  for_vectors(size, [=](int64_t i, auto lanes) {
    store_lanes(y + i, lanes, rectify(load_lanes(x + i, lanes)));
  });
}

inline void relu_backward(int64_t size, const float* dy, const float* y, float* dx) {
  for_vectors(size, [=](int64_t i, auto lanes) {
    store_lanes(dx + i, lanes, where_positive(load_lanes(y + i, lanes), load_lanes(dy + i, lanes)));
  });
}

inline void add(int64_t size, const float* a, const float* b, float* sum) {
  for_vectors(size, [=](int64_t i, auto lanes) {
    store_lanes(sum + i, lanes, load_lanes(a + i, lanes) + load_lanes(b + i, lanes));
  });
}

}  // namespace flexmoe::FLEXMOE_ISA
