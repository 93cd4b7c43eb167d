// GroupNorm over [batch, channels, plane] with the ReLU that follows it.
#pragma once

#include "context.h"
#include "pointwise.h"

namespace flexmoe::FLEXMOE_ISA {

// One element takes as long as so many multiplications of a product: memory is what it waits for.
constexpr double kElementWork = 32;

// y = (x - mean) * rstd * weight + bias over the channels of one group, all in the cache by now.
template <bool kRelu>
FLEXMOE_INLINE void normalize(int64_t channels, int64_t plane, const float* x, float mean,
                              float rstd, const float* weight, const float* bias, float* y) {
  const Vec center = splat(mean);
  for (int64_t c = 0; c < channels; ++c, x += plane, y += plane) {
    const Vec factor = splat(weight ? rstd * weight[c] : rstd);
    const Vec shift = splat(bias ? bias[c] : 0.0f);
    for_vectors(plane, [=](int64_t i, auto lanes) {
      const Vec value = fma(load_lanes(x + i, lanes) - center, factor, shift);
      store_lanes(y + i, lanes, kRelu ? rectify(value) : value);
    });
  }
}

inline void group_norm(const Context& context, const GroupNorm& g, const float* x,
                       const float* weight, const float* bias, float* y, float* mean, float* rstd) {
  const int64_t channels = g.channels / g.groups;
  const int64_t size = channels * g.plane;
  const int64_t items = g.batch * g.groups;
  const double part = 1.0 / static_cast<double>(size);
  const double work = kElementWork * static_cast<double>(items * size);
  share(context, items, work, [=](int64_t item, int) {
    const float* in = x + item * size;
    const float center = static_cast<float>(sum_of(in, size) * part);
    const double squares = blocked_sum(size, [=](int64_t i, auto lanes) {
      const Vec d = load_lanes(in + i, lanes) - splat_lanes(center, lanes);
      return d * d;
    });
    const double variance = squares * part + static_cast<double>(g.epsilon);
    const float scale = static_cast<float>(1.0 / __builtin_sqrt(variance));
    mean[item] = center;
    rstd[item] = scale;
    const int64_t first = item % g.groups * channels;
    const float* w = weight ? weight + first : nullptr;
    const float* b = bias ? bias + first : nullptr;
    if (g.relu) {
      normalize<true>(channels, g.plane, in, center, scale, w, b, y + item * size);
    } else {
      normalize<false>(channels, g.plane, in, center, scale, w, b, y + item * size);
    }
  });
}

// Lane by lane sums of dy and of dy * (x - mean) over one plane.
struct PlaneSums {
  Vec dy, dy_x;
};

template <bool kRelu, class Lanes>
FLEXMOE_INLINE Vec masked(const float* dy, const float* y, Lanes lanes) {
  const Vec value = load_lanes(dy, lanes);
  return kRelu ? where_positive(load_lanes(y, lanes), value) : value;
}

template <bool kRelu>
FLEXMOE_INLINE PlaneSums sum_plane(int64_t plane, const float* dy, const float* x, const float* y,
                                   Vec mean) {
  constexpr int64_t kBlock = 256 * kWidth;
  PlaneSums total{zeros(), zeros()};
  for (int64_t begin = 0; begin < plane; begin += kBlock) {
    const int64_t end = min_of(begin + kBlock, plane);
    PlaneSums even{zeros(), zeros()}, odd{zeros(), zeros()};
    const auto accumulate = [&](PlaneSums& sums, int64_t i, auto lanes) {
      const Vec value = masked<kRelu>(dy + i, y + i, lanes);
      sums.dy += value;
      sums.dy_x = fma(value, load_lanes(x + i, lanes) - mean, sums.dy_x);
    };
    int64_t i = begin;
    for (; i + 2 * kWidth <= end; i += 2 * kWidth) {
      accumulate(even, i, AllLanes{});
      accumulate(odd, i + kWidth, AllLanes{});
    }
    if (i + kWidth <= end) {
      accumulate(even, i, AllLanes{});
      i += kWidth;
    }
    if (i < end) accumulate(odd, i, FirstLanes{end - i});
    total.dy += even.dy + odd.dy;
    total.dy_x += even.dy_x + odd.dy_x;
  }
  return total;
}

struct GroupNormGradient {
  GroupNorm g;
  const float *dy, *x, *mean, *rstd, *weight, *y;
  float *dx, *dweight, *dbias;
  PlaneSums* sums;  // [channels], over the images so far
};

// One group of one image: its share of the channels' sums, then its dx.
template <bool kRelu>
FLEXMOE_INLINE void differentiate(const GroupNormGradient& n, int64_t image, int64_t group) {
  const int64_t channels = n.g.channels / n.g.groups;
  const int64_t plane = n.g.plane;
  const int64_t item = image * n.g.groups + group;
  const int64_t start = item * channels * plane;
  const int64_t first = group * channels;
  const float rstd = n.rstd[item];
  const Vec mean = splat(n.mean[item]);

  PlaneSums weighted{zeros(), zeros()};
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t at = start + c * plane;
    const PlaneSums own = sum_plane<kRelu>(plane, n.dy + at, n.x + at, n.y + at, mean);
    const Vec w = splat(n.weight ? n.weight[first + c] : 1.0f);
    weighted.dy = fma(w, own.dy, weighted.dy);
    weighted.dy_x = fma(w, own.dy_x, weighted.dy_x);
    n.sums[first + c].dy += own.dy;
    n.sums[first + c].dy_x = fma(splat(rstd), own.dy_x, n.sums[first + c].dy_x);
  }

  // dx = rstd (w dy - mean(w dy) - xhat mean(w dy xhat)), with xhat = (x - mean) rstd.
  const float part = rstd / static_cast<float>(channels * plane);
  const Vec offset = splat(-part * sum(weighted.dy));
  const Vec slope = splat(-part * rstd * rstd * sum(weighted.dy_x));
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t at = start + c * plane;
    const Vec factor = splat(n.weight ? rstd * n.weight[first + c] : rstd);
    for_vectors(plane, [&](int64_t i, auto lanes) {
      const Vec value = masked<kRelu>(n.dy + at + i, n.y + at + i, lanes);
      const Vec centered = load_lanes(n.x + at + i, lanes) - mean;
      store_lanes(n.dx + at + i, lanes, fma(value, factor, fma(centered, slope, offset)));
    });
  }
}

inline bool group_norm_backward(const Context& context, const GroupNorm& g, const float* dy,
                                const float* x, const float* mean, const float* rstd,
                                const float* weight, const float* y, float* dx, float* dweight,
                                float* dbias) {
  auto* sums = static_cast<PlaneSums*>(
      context.workspace->take(sizeof(PlaneSums) * static_cast<size_t>(g.channels)));
  if (!sums) return false;
  if (context.measures) return true;
  // Without y, no mask is read: dy stands in for a pointer that must not be null.
  const GroupNormGradient n{g, dy, x, mean, rstd, weight, y ? y : dy, dx, dweight, dbias, sums};
  const bool relu = y != nullptr;
  // By groups, not by images: each channel's sums then belong to one thread.
  const double work = kElementWork * static_cast<double>(g.batch * g.channels * g.plane);
  share(context, g.groups, work, [&n, relu](int64_t group, int) {
    const int64_t channels = n.g.channels / n.g.groups;
    const int64_t begin = group * channels, end = begin + channels;
    for (int64_t c = begin; c < end; ++c) n.sums[c] = {zeros(), zeros()};
    for (int64_t image = 0; image < n.g.batch; ++image) {
      if (relu) {
        differentiate<true>(n, image, group);
      } else {
        differentiate<false>(n, image, group);
      }
    }
    for (int64_t c = begin; c < end; ++c) {
      n.dbias[c] = sum(n.sums[c].dy);
      n.dweight[c] = sum(n.sums[c].dy_x);
    }
  });
  return true;
}

}  // namespace flexmoe::FLEXMOE_ISA
