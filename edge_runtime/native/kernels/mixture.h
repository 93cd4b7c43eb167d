// The loss of a soft mixture of experts, its statistics and its own gradient, in one pass over the
// samples; the balance term, in the gradient alone, takes a pass over the gates before it.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace flexmoe::FLEXMOE_ISA {

// Scratch of one call.
struct MixtureScratch {
  float* gate;     // [slots] softmax of the chosen scores
  float* slopes;   // [slots] d loss / d gate
  float* pulls;    // [slots] d balance term / d gate, of a sample of weight 1
  float* logits;   // [classes], then d loss / d logits
  double* counts;  // [slots, 3]
};

// The place of the largest value; the first of equals, and NaN counts as the largest (as torch).
FLEXMOE_INLINE int64_t argmax(int64_t size, const float* x) {
  int64_t best = 0;
  for (int64_t i = 1; i < size && x[best] == x[best]; ++i) {
    if (x[i] > x[best] || x[i] != x[i]) best = i;
  }
  return best;
}

FLEXMOE_INLINE float largest(int64_t size, const float* x) { return x[argmax(size, x)]; }

// values[i] = softmax of values in place; returns log(sum_i exp(values[i])) - max.
FLEXMOE_INLINE double softmax(int64_t size, float* values) {
  const float top = largest(size, values);
  double total = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    values[i] = __builtin_expf(values[i] - top);
    total += static_cast<double>(values[i]);
  }
  const float factor = static_cast<float>(1.0 / total);
  for (int64_t i = 0; i < size; ++i) values[i] *= factor;
  return __builtin_log(total);
}

// y[i] += factor * x[i]
FLEXMOE_INLINE void add_scaled(int64_t size, float factor, const float* x, float* y) {
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth)
    store(y + i, fma(splat(factor), load(x + i), load(y + i)));
  for (; i < size; ++i) y[i] += factor * x[i];
}

FLEXMOE_INLINE float dot(int64_t size, const float* a, const float* b) {
  Vec total = zeros();
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) total = fma(load(a + i), load(b + i), total);
  if (i < size) {
    total = fma(load_partial(a + i, size - i), load_partial(b + i, size - i), total);
  }
  return sum(total);
}

// gate = softmax of a sample's chosen scores.
FLEXMOE_INLINE void open_gate(const Mixture& m, const float* row, const int64_t* chosen,
                              float* gate) {
  for (int64_t i = 0; i < m.slots; ++i) gate[i] = row[chosen[i]];
  softmax(m.slots, gate);
}

// The balance term is balance * slots * sum_i share_i * (sum_b weight_b * gate_bi), where share_i
// is the part of the batch's weight that is routed to slot i, which is not differentiated (Switch
// Transformers, Fedus et al., arXiv 2101.03961, equations 4 to 6, times the batch's weight).
inline void find_pulls(const Mixture& m, const float* scores, const int64_t* chosen,
                       const float* weight, const MixtureScratch& s) {
  for (int64_t i = 0; i < m.slots; ++i) s.pulls[i] = 0.0f;
  if (m.balance == 0.0f) return;
  double* routed = s.counts;  // [slots] weight, until the counts begin
  for (int64_t i = 0; i < m.slots; ++i) routed[i] = 0.0;
  double total = 0.0;
  for (int64_t b = 0; b < m.batch; ++b) {
    open_gate(m, scores + b * m.experts, chosen, s.gate);
    routed[argmax(m.slots, s.gate)] += static_cast<double>(weight[b]);
    total += static_cast<double>(weight[b]);
  }
  if (total == 0.0) return;  // only padding
  for (int64_t i = 0; i < m.slots; ++i) {
    s.pulls[i] = m.balance * static_cast<float>(m.slots) * static_cast<float>(routed[i] / total);
  }
}

inline bool mixture_cross_entropy(const Context& context, const Mixture& m, const float* scores,
                                  const float* outputs, const int64_t* y, const int64_t* chosen,
                                  const float* weight, float* loss, float* stats, float* dscores,
                                  float* doutputs) {
  const size_t slots = static_cast<size_t>(m.slots), classes = static_cast<size_t>(m.classes);
  MixtureScratch s;
  s.gate = static_cast<float*>(context.workspace->take(slots * sizeof(float)));
  s.slopes = static_cast<float*>(context.workspace->take(slots * sizeof(float)));
  s.pulls = static_cast<float*>(context.workspace->take(slots * sizeof(float)));
  s.logits = static_cast<float*>(context.workspace->take(classes * sizeof(float)));
  s.counts = static_cast<double*>(context.workspace->take(3 * slots * sizeof(double)));
  if (!s.gate || !s.slopes || !s.pulls || !s.logits || !s.counts) return false;
  if (context.measures) return true;

  if (dscores) find_pulls(m, scores, chosen, weight, s);
  for (int64_t i = 0; i < 3 * m.slots; ++i) s.counts[i] = 0.0;
  double total = 0.0;
  for (int64_t b = 0; b < m.batch; ++b) {
    const float* row = scores + b * m.experts;
    const int64_t stride = m.batch * m.classes;  // between slots
    const float* output = outputs + b * m.classes;

    open_gate(m, row, chosen, s.gate);
    for (int64_t c = 0; c < m.classes; ++c) s.logits[c] = 0.0f;
    for (int64_t i = 0; i < m.slots; ++i) {
      add_scaled(m.classes, s.gate[i], output + i * stride, s.logits);
    }

    const int64_t predicted = argmax(m.classes, s.logits);
    const double below =
        static_cast<double>(s.logits[y[b]]) - static_cast<double>(s.logits[predicted]);
    const double sample_loss = softmax(m.classes, s.logits) - below;
    total += static_cast<double>(weight[b]) * sample_loss;
    if (weight[b] > 0.0f) {
      double* routed = s.counts + 3 * argmax(m.slots, s.gate);
      routed[0] += 1.0;
      routed[1] += sample_loss;
      routed[2] += predicted == y[b] ? 1.0 : 0.0;
    }
    if (!dscores) continue;

    // From here on logits holds d loss / d logits = weight (probability - target).
    s.logits[y[b]] -= 1.0f;
    for (int64_t c = 0; c < m.classes; ++c) s.logits[c] *= weight[b];
    float mean = 0.0f;
    for (int64_t i = 0; i < m.slots; ++i) {
      s.slopes[i] = dot(m.classes, s.logits, output + i * stride) + weight[b] * s.pulls[i];
      mean += s.gate[i] * s.slopes[i];
      float* gradient = doutputs + i * stride + b * m.classes;
      for (int64_t c = 0; c < m.classes; ++c) gradient[c] = s.gate[i] * s.logits[c];
    }
    float* drow = dscores + b * m.experts;
    for (int64_t e = 0; e < m.experts; ++e) drow[e] = 0.0f;
    for (int64_t i = 0; i < m.slots; ++i) drow[chosen[i]] += s.gate[i] * (s.slopes[i] - mean);
  }
  *loss = static_cast<float>(total);
  for (int64_t i = 0; i < 3 * m.slots; ++i) stats[i] = static_cast<float>(s.counts[i]);
  return true;
}

}  // namespace flexmoe::FLEXMOE_ISA
