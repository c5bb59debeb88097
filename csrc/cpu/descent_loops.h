// Gradient descent on a CPU thread. Apart from the loops of other rules (engine/rule_loops.h), for two reasons: primitives
// take its steps on the way, while a gradient is still in registers; and where one number moves all that is learnt, the
// product H v is scaled instead of the vector. A first layer in coordinates (cpu/first_layer.h) is left out.
#pragma once

#include "cpu/frame.h"
#include "cpu/kernels/pack.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct DescentLoops {
  using E = Element<T>;

  const Job<E>& job;

  // The rate a_k: of all of parameter a, or of its elements.
  E rate_of(int32_t a, int32_t k) const { return job.hypers[0].table[k * job.adapted_count + a]; }
  const E* elementwise(int32_t a, int32_t k) const {
    const HyperPlan<E>& rate = job.hypers[0];
    return rate.each[a] ? rate.each[a] + k * rate.each_stride[a] : nullptr;
  }

  // Does one number move all that is learnt at step k?
  bool one_rate(int32_t k) const {
    if (job.learnt_count != job.adapted_count) return false;
    if (job.hypers[0].elementwise) return false;
    for (int32_t a = 0; a < job.adapted_count; ++a)
      if (rate_of(a, k) != rate_of(0, k)) return false;
    return true;
  }

  // Step k for primitives to take, which know rates of whole parameters only.
  FusedStep<T> fused_step(const T* from, T* to, int32_t k) const {
    if (job.hypers[0].elementwise) return {};
    return {from, to, job.hypers[0].table + k * job.adapted_count, job.adapted_count};
  }

  // theta_{k+1} = theta_k - a_k g_k, as far as no primitive has taken the step.
  METAFAST_OUTLINED void step(const Frame<T>& f, int32_t k, T* next) const {
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      if (a == job.first.parameter || f.takes_step(a)) continue;
      const int64_t at = job.parameters[a].offset, n = job.parameters[a].size;
      const T* __restrict theta = f.theta + at, * __restrict g = f.gradient + at;
      T* __restrict out = next + at;
      if (const E* __restrict rates = elementwise(a, k)) {
        for (int64_t i = 0; i < n; ++i) out[i] = theta[i] - T(rates[i]) * g[i];
      } else {
        const T rate = rate_of(a, k);
        for (int64_t i = 0; i < n; ++i) out[i] = theta[i] - rate * g[i];
      }
    }
  }

  // v = - a_k lambda, the bar of the gradient.
  void vector(int32_t k, const T* lambda, T* v) const {
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      if (a == job.first.parameter) continue;
      const int64_t at = job.parameters[a].offset, n = job.parameters[a].size;
      const T* __restrict from = lambda + at;
      T* __restrict out = v + at;
      if (const E* __restrict rates = elementwise(a, k)) {
        for (int64_t i = 0; i < n; ++i) out[i] = -T(rates[i]) * from[i];
      } else {
        const T rate = -rate_of(a, k);
        for (int64_t i = 0; i < n; ++i) out[i] = rate * from[i];
      }
    }
  }

  // d loss / d a_k = - lambda_{k+1} g_k, summed to the shape of a_k.
  void add_rate_gradient(const Frame<T>& f, int32_t k, const T* lambda, T* bars) const {
    const HyperPlan<E>& rate = job.hypers[0];
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      if (a == job.first.parameter) continue;
      const ParameterPlan& p = job.parameters[a];
      const T* __restrict g = f.gradient + p.offset, * __restrict l = lambda + p.offset;
      if (rate.each[a]) {
        T* __restrict out = bars + rate.each_offset[a] + k * rate.each_stride[a];
        for (int64_t i = 0; i < p.size; ++i) out[i] -= l[i] * g[i];
      } else {
        bars[rate.table_offset + k * job.adapted_count + a] = -inner_product(p, l, g);
      }
    }
  }

 private:
  // Partial sums by the place in a register, whether a register is what the elements stand in or not.
  static T inner_product(const ParameterPlan& p, const T* __restrict a, const T* __restrict b) {
    if constexpr (kIsPack<T>) {
      constexpr int L = kLanes<E>;
      T parts[L] = {};
      for (int64_t i = 0; i < p.size; i += p.ld)
        for (int64_t o = 0; o < p.ld; ++o) parts[o % L] += a[i + o] * b[i + o];
      T total = T(0);
      for (const T& part : parts) total += part;
      return total;
    } else {
      Vector<T> parts{};
      for (int64_t i = 0; i < p.size; i += kLanes<T>) parts += load(a + i) * load(b + i);
      return sum_of<T>(parts);
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
