// Each client's answer to prices: its best experts, and how near it was to another choice.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

// The loop over a row is compiled for what the processor has, and chosen when the module loads.
// That takes a loader that knows indirect functions, as glibc's does.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define FLEXMOE_FOR_EACH_PROCESSOR __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define FLEXMOE_FOR_EACH_PROCESSOR
#endif

namespace flexmoe::prices {

// The problem of a block of C clients; weight is null where a client's samples are its weight.
template <class Quality>
struct Block {
  int64_t clients, experts;
  const Quality* quality;
  const int64_t* samples;
  const double* weight;
  const int64_t* capacity;
  const uint32_t* client_keys;
};

// What to answer to. jitter is what at most is taken off a pair; window is how far prices may soon
// move apart.
struct Offer {
  const double* prices;
  const uint32_t* expert_keys;
  double jitter;
  double window;
};

// Where the answer goes; load and curvature are added to. All but load may be null.
struct Answer {
  double* load;
  double* curvature;
  int32_t* picks;
  int64_t most;  // columns of picks
  double* margins;
};

// A number from 0 to below 1 for each pair of keys; it goes by way of a signed integer, which vector
// units convert at once.
inline double lot(uint32_t client, uint32_t expert) {
  uint32_t x = client ^ expert;
  x *= 0x9E3779B1u;
  x ^= x >> 15;
  x *= 0x85EBCA77u;
  x ^= x >> 13;
  return static_cast<int32_t>(x >> 1) * 0x1p-31;
}

FLEXMOE_FOR_EACH_PROCESSOR
inline void score(const float* quality, const double* weight, double samples, uint32_t key,
                  const Offer& offer, int64_t experts, double* scores) {
  for (int64_t e = 0; e < experts; ++e) {
    const double cost = (weight ? weight[e] : samples) * offer.prices[e];
    scores[e] = quality[e] - cost - offer.jitter * lot(key, offer.expert_keys[e]);
  }
}

FLEXMOE_FOR_EACH_PROCESSOR
inline void score(const double* quality, const double* weight, double samples, uint32_t key,
                  const Offer& offer, int64_t experts, double* scores) {
  for (int64_t e = 0; e < experts; ++e) {
    const double cost = (weight ? weight[e] : samples) * offer.prices[e];
    scores[e] = quality[e] - cost - offer.jitter * lot(key, offer.expert_keys[e]);
  }
}

// The indices of the `keep` largest scores, largest first.
inline void rank(const std::vector<double>& scores, int64_t keep, std::vector<int32_t>& order) {
  constexpr int64_t kFew = 16;  // beyond, sorting is cheaper than inserting
  const int64_t experts = static_cast<int64_t>(scores.size());
  const auto better = [&](int32_t a, int32_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  };
  if (keep > kFew) {
    order.resize(experts);
    for (int64_t e = 0; e < experts; ++e) order[e] = static_cast<int32_t>(e);
    std::partial_sort(order.begin(), order.begin() + keep, order.end(), better);
    return;
  }
  order.resize(keep);
  int64_t held = 0;
  double worst = -std::numeric_limits<double>::infinity();
  for (int64_t e = 0; e < experts; ++e) {
    if (held == keep && !(scores[e] > worst)) continue;
    int64_t place = held < keep ? held++ : keep - 1;
    for (; place > 0 && scores[order[place - 1]] < scores[e]; --place) {
      order[place] = order[place - 1];
    }
    order[place] = static_cast<int32_t>(e);
    if (held == keep) worst = scores[order[keep - 1]];
  }
}

// A client that changes expert `from` for `to` within the window moves load from one to the other.
// The larger it is, the more it feels a price, and the more it moves.
inline void add_curvature(double margin, double from_weight, double to_weight, int64_t from,
                          int64_t to, const Offer& offer, int64_t experts, double* curvature) {
  const double size = offer.window * (from_weight + to_weight) / 2;
  if (margin >= size) return;
  curvature[from * experts + from] += from_weight * from_weight / size;
  curvature[to * experts + to] += to_weight * to_weight / size;
  curvature[from * experts + to] -= from_weight * to_weight / size;
  curvature[to * experts + from] -= from_weight * to_weight / size;
}

// The sum of what the clients get.
template <class Quality>
double respond(const Block<Quality>& block, const Offer& offer, const Answer& answer) {
  const int64_t experts = block.experts;
  std::vector<double> scores(experts);
  std::vector<int32_t> order;
  double value = 0;
  for (int64_t c = 0; c < block.clients; ++c) {
    const double* weights = block.weight ? block.weight + c * experts : nullptr;
    const double samples = static_cast<double>(block.samples[c]);
    score(block.quality + c * experts, weights, samples, block.client_keys[c], offer, experts,
          scores.data());
    const int64_t k = block.capacity[c];
    rank(scores, std::min(k + 1, experts), order);
    double sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      const int32_t e = order[i];
      sum += scores[e];
      answer.load[e] += weights ? weights[e] : samples;
      if (answer.picks) answer.picks[c * answer.most + i] = e;
    }
    value += sum;
    double margin = std::numeric_limits<double>::infinity();
    if (k < experts) {
      const int32_t last = order[k - 1], next = order[k];
      margin = scores[last] - scores[next];
      if (answer.curvature) {
        add_curvature(margin, weights ? weights[last] : samples, weights ? weights[next] : samples,
                      last, next, offer, experts, answer.curvature);
      }
    }
    if (answer.margins) answer.margins[c] = margin;
  }
  return value;
}

}  // namespace flexmoe::prices
