// Transposes matrices, in blocks of kWidth x kWidth that stay in registers.
#pragma once

#include "simd.h"

namespace flexmoe::FLEXMOE_ISA {

// Within each 128-bit lane: a0 b0 a1 b1, a2 b2 a3 b3, a0 a1 b0 b1, a2 a3 b2 b3. The 128-bit lanes
// themselves: those of a then those of b, even or odd.
#if defined(__AVX512F__)
#define FLEXMOE_LANES(p, q, r, s)                                                              \
  p, q, r, s, (p) + 4, (q) + 4, (r) + 4, (s) + 4, (p) + 8, (q) + 8, (r) + 8, (s) + 8, (p) + 12, \
      (q) + 12, (r) + 12, (s) + 12
FLEXMOE_INLINE Vec even_lanes(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
}
FLEXMOE_INLINE Vec odd_lanes(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
#elif defined(__AVX2__)
#define FLEXMOE_LANES(p, q, r, s) p, q, r, s, (p) + 4, (q) + 4, (r) + 4, (s) + 4
FLEXMOE_INLINE Vec even_lanes(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
}
FLEXMOE_INLINE Vec odd_lanes(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
#else
#define FLEXMOE_LANES(p, q, r, s) p, q, r, s
#endif
FLEXMOE_INLINE Vec low_floats(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, FLEXMOE_LANES(0, kWidth, 1, kWidth + 1));
}
FLEXMOE_INLINE Vec high_floats(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, FLEXMOE_LANES(2, kWidth + 2, 3, kWidth + 3));
}
FLEXMOE_INLINE Vec low_pairs(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, FLEXMOE_LANES(0, 1, kWidth, kWidth + 1));
}
FLEXMOE_INLINE Vec high_pairs(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, FLEXMOE_LANES(2, 3, kWidth + 2, kWidth + 3));
}
#undef FLEXMOE_LANES

struct Square {
  Vec v[kWidth];
};

FLEXMOE_INLINE void transpose_square(Square& square) {
  Vec* v = square.v;
  // 4x4 within the 128-bit lanes.
#pragma GCC unroll 4
  for (int g = 0; g < kWidth; g += 4) {
    const Vec a = low_floats(v[g], v[g + 1]), b = high_floats(v[g], v[g + 1]);
    const Vec c = low_floats(v[g + 2], v[g + 3]), d = high_floats(v[g + 2], v[g + 3]);
    v[g] = low_pairs(a, c);
    v[g + 1] = high_pairs(a, c);
    v[g + 2] = low_pairs(b, d);
    v[g + 3] = high_pairs(b, d);
  }
  // The 128-bit lanes.
#if defined(__AVX512F__)
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const Vec a = even_lanes(v[q], v[q + 4]), b = odd_lanes(v[q], v[q + 4]);
    const Vec c = even_lanes(v[q + 8], v[q + 12]), d = odd_lanes(v[q + 8], v[q + 12]);
    v[q] = even_lanes(a, c);
    v[q + 4] = even_lanes(b, d);
    v[q + 8] = odd_lanes(a, c);
    v[q + 12] = odd_lanes(b, d);
  }
#elif defined(__AVX2__)
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const Vec a = even_lanes(v[q], v[q + 4]), b = odd_lanes(v[q], v[q + 4]);
    v[q] = a;
    v[q + 4] = b;
  }
#endif
}

// to(j)[i] = from(i)[j] for i < rows, j < columns; to(j)[i] = 0 for rows <= i < padded_rows.
// `from` and `to` give the start of a row: const float* from(int64_t), float* to(int64_t).
template <typename From, typename To>
FLEXMOE_INLINE void transpose(int64_t rows, int64_t columns, int64_t padded_rows, From from,
                              To to) {
  for (int64_t j = 0; j < columns; j += kWidth) {
    const int64_t width = min_of(kWidth, columns - j);
    for (int64_t i = 0; i < padded_rows; i += kWidth) {
      const int64_t height = max_of(0, min_of(kWidth, rows - i));
      const int64_t lanes = min_of(kWidth, padded_rows - i);
      Square square;
      if (height == kWidth && width == kWidth) {
#pragma GCC unroll 16
        for (int r = 0; r < kWidth; ++r) square.v[r] = load(from(i + r) + j);
      } else {
#pragma GCC unroll 16
        for (int r = 0; r < kWidth; ++r) {
          square.v[r] = r < height ? load_partial(from(i + r) + j, width) : zeros();
        }
      }
      transpose_square(square);
      if (lanes == kWidth && width == kWidth) {
#pragma GCC unroll 16
        for (int r = 0; r < kWidth; ++r) store(to(j + r) + i, square.v[r]);
      } else {
#pragma GCC unroll 16
        for (int r = 0; r < kWidth; ++r) {
          if (r < width) store_partial(to(j + r) + i, lanes, square.v[r]);
        }
      }
    }
  }
}

// to[j * rows + i] = from[i * row_floats + j] for i < rows <= 4, j < columns: with so few rows, a
// block of kWidth would be mostly empty. Writes ascend, each quad over the end of the last.
inline void interleave(int64_t rows, int64_t columns, const float* from, int64_t row_floats,
                       float* to) {
  typedef float Quad __attribute__((vector_size(16)));
  typedef float UnalignedQuad
      __attribute__((vector_size(16), aligned(alignof(float)), may_alias));
  const float* row[4];
  for (int64_t i = 0; i < 4; ++i) row[i] = from + min_of(i, rows - 1) * row_floats;
  const auto quad = [](const float* p) -> Quad {
    return *reinterpret_cast<const UnalignedQuad*>(p);
  };
  const auto put = [](float* p, Quad q) { *reinterpret_cast<UnalignedQuad*>(p) = q; };
  int64_t j = 0;
  for (; (j + 3) * rows + 4 <= columns * rows; j += 4) {
    const Quad a = quad(row[0] + j), b = quad(row[1] + j);
    const Quad c = quad(row[2] + j), d = quad(row[3] + j);
    const Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    const Quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const Quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    put(to + j * rows, __builtin_shufflevector(ab, cd, 0, 1, 4, 5));
    put(to + (j + 1) * rows, __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
    put(to + (j + 2) * rows, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
    put(to + (j + 3) * rows, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
  }
  for (; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) to[j * rows + i] = row[i][j];
  }
}

}  // namespace flexmoe::FLEXMOE_ISA
