// The innermost loop of every product: a tile of c, held in registers, over segments of packed
// panels.
//
//   c[i][j] = sum over segments s, over steps k of s:
//             a[s.a + k * a_step + i] * b[s.b + k * b_step + j]
//
// A matrix product has one segment. A convolution has one for each run of neighbouring taps (see
// conv2d.h), and so needs no im2col.
#pragma once

#include "simd.h"

namespace flexmoe::FLEXMOE_ISA {

// The tile is at most kTileRows x kTileColumns; both inputs and the sums fit the register file.
#if defined(__AVX512F__)
constexpr int64_t kTileRows = 13;  // 26 sums + 2 of b + 1 of a, of 32 registers
#elif defined(__aarch64__)
constexpr int64_t kTileRows = 12;  // 24 sums + 2 of b + 3 of a, of 32 registers
#else
constexpr int64_t kTileRows = 6;  // 12 sums + 2 of b + 1 of a, of 16 registers
#endif
constexpr int64_t kTileColumns = 2 * kWidth;

// Offsets in floats from Tile::a and Tile::b.
struct Segment {
  int64_t a, b, steps;
};

struct Tile {
  const float* a;
  const float* b;
  int64_t a_step, b_step;
  const Segment* segments;
  int64_t segment_count;
  float* c;
  int64_t c_step;
  int64_t columns;           // of c that are written; b is read in whole vectors
  const float* row_bias;     // the sums start at: row_bias[i], or else column_bias[j],
  const float* column_bias;  // or else c itself if `accumulate`, or else 0
  bool accumulate;
  bool relu;
};

template <int kRows, int kVectors>
struct Sums {
  Vec v[kRows][kVectors];
};

template <int kRows, int kVectors>
FLEXMOE_INLINE void start_sums(const Tile& t, Sums<kRows, kVectors>& sums) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) sums.v[i][j] = zeros();
  }
  if (!t.row_bias && !t.column_bias && !t.accumulate) return;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      const int64_t lanes = min_of(kWidth, max_of(0, t.columns - j * kWidth));
      if (t.row_bias) {
        sums.v[i][j] = splat(t.row_bias[i]);
      } else {
        const float* from = t.column_bias ? t.column_bias : t.c + i * t.c_step;
        sums.v[i][j] = lanes == kWidth ? load(from + j * kWidth)
                                       : load_partial(from + j * kWidth, lanes);
      }
    }
  }
}

template <int kRows, int kVectors>
FLEXMOE_INLINE void finish_sums(const Tile& t, Sums<kRows, kVectors>& sums) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      if (t.relu) sums.v[i][j] = rectify(sums.v[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      float* to = t.c + i * t.c_step + j * kWidth;
      const int64_t lanes = min_of(kWidth, max_of(0, t.columns - j * kWidth));
      if (lanes == kWidth) {
        store(to, sums.v[i][j]);
      } else {
        store_partial(to, lanes, sums.v[i][j]);
      }
    }
  }
}

template <int kRows, int kVectors>
FLEXMOE_INLINE void add_step(const float* a, const float* b, Sums<kRows, kVectors>& sums) {
  Vec row[kVectors];
#pragma GCC unroll 2
  for (int j = 0; j < kVectors; ++j) row[j] = load(b + j * kWidth);
#if defined(__aarch64__)
  // Four rows of a by one load: its multiplications take their factor from any lane.
  constexpr int kQuads = kRows / 4 * 4;
#pragma GCC unroll 16
  for (int i = 0; i < kQuads; i += 4) {
    const Vec factors = load(a + i);
#pragma GCC unroll 4
    for (int lane = 0; lane < 4; ++lane) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        sums.v[i + lane][j] = fma(splat(factors[lane]), row[j], sums.v[i + lane][j]);
      }
    }
  }
#else
  constexpr int kQuads = 0;
#endif
#pragma GCC unroll 16
  for (int i = kQuads; i < kRows; ++i) {
    const Vec factor = splat(a[i]);
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) sums.v[i][j] = fma(factor, row[j], sums.v[i][j]);
  }
}

template <int kRows, int kVectors>
void compute_tile(const Tile& t) {
  Sums<kRows, kVectors> sums;
  start_sums(t, sums);
  const int64_t a_step = t.a_step, b_step = t.b_step;
  for (int64_t s = 0; s < t.segment_count; ++s) {
    const float* a = t.a + t.segments[s].a;
    const float* b = t.b + t.segments[s].b;
    for (int64_t k = t.segments[s].steps; k > 0; --k) {
      add_step(a, b, sums);
      a += a_step;
      b += b_step;
    }
  }
  finish_sums(t, sums);
}

using ComputeTile = void (*)(const Tile&);

#define FLEXMOE_TILE(rows) {compute_tile<rows, 1>, compute_tile<rows, 2>}
constexpr ComputeTile kComputeTile[kTileRows][2] = {
    FLEXMOE_TILE(1),  FLEXMOE_TILE(2),  FLEXMOE_TILE(3), FLEXMOE_TILE(4), FLEXMOE_TILE(5),
    FLEXMOE_TILE(6),
#if defined(__AVX512F__) || defined(__aarch64__)
    FLEXMOE_TILE(7),  FLEXMOE_TILE(8),  FLEXMOE_TILE(9), FLEXMOE_TILE(10), FLEXMOE_TILE(11),
    FLEXMOE_TILE(12),
#endif
#if defined(__AVX512F__)
    FLEXMOE_TILE(13),
#endif
};
#undef FLEXMOE_TILE

// 1 <= rows <= kTileRows, 1 <= tile.columns <= kTileColumns.
FLEXMOE_INLINE void compute_tile(int64_t rows, const Tile& tile) {
  kComputeTile[rows - 1][tile.columns > kWidth](tile);
}

// How `size` rows are cut: into tiles of equal height, but for the last.
FLEXMOE_INLINE int64_t tile_height(int64_t size) {
  const int64_t height = size == 0 ? 1 : ceil_div(size, ceil_div(size, kTileRows));
#if defined(__aarch64__)
  return round_up(height, 4);  // whole loads of a
#else
  return height;
#endif
}
// Floats to read b by: one vector if the columns fit one.
FLEXMOE_INLINE int64_t panel_width(int64_t columns) {
  return columns > kWidth ? kTileColumns : kWidth;
}

}  // namespace flexmoe::FLEXMOE_ISA
