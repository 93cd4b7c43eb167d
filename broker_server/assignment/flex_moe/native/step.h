// A proximal Newton step on the prices: the dual's smooth part as a quadratic, the bounds' exactly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace flexmoe::prices {

// Minimizes over x within `radius` of p and `limit` of 0, by coordinate descent:
//   -load (x - p) + (x - p) H (x - p) / 2 + sum_e (x_e > 0 ? upper_e x_e : lower_e x_e)
// H [E, E] is symmetric with a diagonal above 0. Infinite upper bounds keep their prices at 0.
inline void step(const double* prices, const double* load, const double* curvature,
                 const double* lower, const double* upper, double radius, double limit,
                 int64_t experts, double* x) {
  constexpr int kSweeps = 300;
  constexpr double kStill = 1e-9;  // of the radius
  std::vector<double> slope(experts);
  for (int64_t e = 0; e < experts; ++e) {
    x[e] = prices[e];
    slope[e] = -load[e];
  }
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    double largest = 0;
    for (int64_t e = 0; e < experts; ++e) {
      const double* row = curvature + e * experts;
      const double rest = slope[e] - row[e] * x[e];
      const double above = -(rest + upper[e]) / row[e];
      const double below = -(rest + lower[e]) / row[e];
      const double best = above > 0 ? above : below < 0 ? below : 0.0;
      const double least = std::max(prices[e] - radius, -limit);
      const double most = std::min(prices[e] + radius, limit);
      const double change = std::min(std::max(best, least), most) - x[e];
      if (change == 0) continue;
      for (int64_t f = 0; f < experts; ++f) slope[f] += row[f] * change;
      x[e] += change;
      largest = std::max(largest, std::fabs(change));
    }
    if (largest <= kStill * radius) return;
  }
}

}  // namespace flexmoe::prices
