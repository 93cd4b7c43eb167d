// One SIMD register of floats and what the kernels do with it, in the namespace of the instruction
// set this file is compiled for. The compiler's flags choose the width.
//
// FLEXMOE_ISA is defined by the including .cc (baseline.cc, avx2.cc, avx512.cc, neon.cc). Nothing
// of the C++ library's templates may be used below it: see docs/native.md, "Kernels".
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define FLEXMOE_INLINE inline __attribute__((always_inline))

namespace flexmoe::FLEXMOE_ISA {

#if defined(__AVX512F__)
constexpr int64_t kWidth = 16;
#elif defined(__AVX2__)
constexpr int64_t kWidth = 8;
#else
constexpr int64_t kWidth = 4;
#endif

// Supports + - * / and unary minus, lane by lane (a vector of GCC and Clang).
typedef float Vec __attribute__((vector_size(kWidth * sizeof(float))));
typedef float UnalignedVec
    __attribute__((vector_size(kWidth * sizeof(float)), aligned(alignof(float)), may_alias));

FLEXMOE_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
FLEXMOE_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
// For a >= 0, b > 0.
FLEXMOE_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FLEXMOE_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// No alignment is needed.
FLEXMOE_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
FLEXMOE_INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

FLEXMOE_INLINE Vec zeros() { return Vec{}; }

#if defined(__AVX512F__)

FLEXMOE_INLINE Vec splat(float x) { return _mm512_set1_ps(x); }
FLEXMOE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// Masked with all lanes: GCC 12 warns of its own header's uninitialized value in the plain forms.
FLEXMOE_INLINE Vec max(Vec a, Vec b) { return _mm512_maskz_max_ps(0xffff, a, b); }
FLEXMOE_INLINE Vec sqrt(Vec a) { return _mm512_maskz_sqrt_ps(0xffff, a); }
FLEXMOE_INLINE float sum(Vec a) {
  const __m256 half = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, a, 0),
                                    _mm512_maskz_extractf32x8_ps(0xff, a, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
FLEXMOE_INLINE Vec where_positive(Vec y, Vec x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GT_OQ), x);
}
FLEXMOE_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
FLEXMOE_INLINE Vec load_partial(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
FLEXMOE_INLINE void store_partial(float* p, int64_t n, Vec v) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}

#elif defined(__AVX2__)

FLEXMOE_INLINE Vec splat(float x) { return _mm256_set1_ps(x); }
FLEXMOE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
FLEXMOE_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
FLEXMOE_INLINE Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
FLEXMOE_INLINE float sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
FLEXMOE_INLINE Vec where_positive(Vec y, Vec x) {
  return _mm256_and_ps(_mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_GT_OQ), x);
}
FLEXMOE_INLINE __m256i first_lanes(int64_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes);
}
FLEXMOE_INLINE Vec load_partial(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
FLEXMOE_INLINE void store_partial(float* p, int64_t n, Vec v) {
  _mm256_maskstore_ps(p, first_lanes(n), v);
}

#else

FLEXMOE_INLINE Vec splat(float x) { return Vec{x, x, x, x}; }
FLEXMOE_INLINE float sum(Vec a) { return (a[0] + a[1]) + (a[2] + a[3]); }

#if defined(__ARM_NEON)
FLEXMOE_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
FLEXMOE_INLINE Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
FLEXMOE_INLINE Vec sqrt(Vec a) { return vsqrtq_f32(a); }
#elif defined(__SSE2__)
FLEXMOE_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
FLEXMOE_INLINE Vec max(Vec a, Vec b) { return _mm_max_ps(a, b); }
FLEXMOE_INLINE Vec sqrt(Vec a) { return _mm_sqrt_ps(a); }
#else
FLEXMOE_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
FLEXMOE_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
FLEXMOE_INLINE Vec sqrt(Vec a) {
  return Vec{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
             __builtin_sqrtf(a[3])};
}
#endif

FLEXMOE_INLINE Vec where_positive(Vec y, Vec x) {
  typedef int32_t Bits __attribute__((vector_size(16)));
  return reinterpret_cast<Vec>(reinterpret_cast<Bits>(y > zeros()) & reinterpret_cast<Bits>(x));
}
FLEXMOE_INLINE Vec load_partial(const float* p, int64_t n) {
  return Vec{n > 0 ? p[0] : 0.0f, n > 1 ? p[1] : 0.0f, n > 2 ? p[2] : 0.0f, n > 3 ? p[3] : 0.0f};
}
FLEXMOE_INLINE void store_partial(float* p, int64_t n, Vec v) {
  for (int64_t i = 0; i < n && i < kWidth; ++i) p[i] = v[i];
}

#endif

// load_partial: the first n <= kWidth floats, zeros after them. store_partial: only the first n.
// max: where either is NaN, b on x86 and NaN on ARM.
// where_positive(y, x): x where y > 0, else 0 (also where y is NaN).

// max(x, 0), and NaN stays NaN.
FLEXMOE_INLINE Vec rectify(Vec x) { return max(zeros(), x); }

}  // namespace flexmoe::FLEXMOE_ISA
