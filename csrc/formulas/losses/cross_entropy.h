// Cross-entropy with a class or with probabilities, label smoothing and weights of classes.
//
//   l = sum_c a_c (log sum_j exp z_j - z_c) with a_c = w_c q_c, q the wanted distribution
//
// exp(z - max) / sum is computed once, in forward, and kept: p' = p (z' - sum_c p_c z'_c).
#pragma once

#include "formulas/losses/classes.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct CrossEntropyOfRow {
  T smoothing;
  METAFAST_HD explicit CrossEntropyOfRow(const LossPlan& plan) : smoothing(T(plan.attribute[0])) {}

  // a_c of the classes of a row; divided and subtracted once, before anything is stored.
  struct Wanted {
    const Target<T> y;
    const ClassWeights<T> weights;
    const T rest, floor;
    METAFAST_HD T operator[](int64_t c) const {
      const T q = y.labels ? (c == y.label() ? T(1) : T(0)) : y[c];
      return weights[c] * (rest * q + floor);
    }
    METAFAST_HD T total(int64_t n) const {
      if (y.labels && !weights.of_class) return T(1);
      T sum = T(0);
      METAFAST_LOOP for (int64_t c = 0; c < n; ++c) sum += (*this)[c];
      return sum;
    }
  };
  METAFAST_HD Wanted wanted(const Target<T>& y, const ClassWeights<T>& weights, int64_t n) const {
    return {y, weights, T(1) - smoothing, smoothing / T(n)};
  }

  // Fills the kept probabilities and returns log sum exp.
  METAFAST_HD T normalise(const Outputs<T>& z) const {
    T highest = z.value[0];
    METAFAST_LOOP for (int64_t c = 1; c < z.count; ++c) highest = z.value[c] > highest ? z.value[c] : highest;
    T* __restrict p = z.kept;
    const T* __restrict in = z.value;
    METAFAST_LOOP for (int64_t c = 0; c < z.ld; ++c) p[c] =
        exp(in[c] - highest);  // whole vectors; nobody reads the pads
    T sum = T(0);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) sum += p[c];
    METAFAST_LOOP for (int64_t c = 0; c < z.ld; ++c) p[c] /= sum;
    return log(sum) + highest;
  }
  METAFAST_HD void log_sum_exp(const Outputs<T>& z, T& out) const { out = normalise(z); }
  METAFAST_HD void log_sum_exp(const Outputs<T>& z, Dual<T>& out) const { out = Dual<T>(normalise(z), mean_dot(z)); }
  METAFAST_HD void ignore(const Outputs<T>& z) const { normalise(z); }
  METAFAST_HD T mean_dot(const Outputs<T>& z) const {
    T sum = T(0);
    if (z.dot) METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) sum += z.kept[c] * z.dot[c];
    return sum;
  }

  template <class S>
  METAFAST_HD S value(const Outputs<T>& z, const Target<T>& y, const ClassWeights<T>& weights) const {
    S all, zc;
    log_sum_exp(z, all);
    if (y.labels && smoothing == T(0)) return z.get(y.label(), zc), S(weights[y.label()]) * (all - zc);
    const Wanted a = wanted(y, weights, z.count);
    S loss(0);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc), loss += S(a[c]) * (all - zc);
    return loss;
  }
  template <class S, class Put>
  METAFAST_HD void gradient(const Outputs<T>& z, const Target<T>& y, const ClassWeights<T>& weights, Put put) const {
    const Wanted a = wanted(y, weights, z.count);
    const T total = a.total(z.count), mean = mean_dot(z);
    S zc;
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) {
      z.get(c, zc);
      put(c, probability(z.kept[c], zc, mean) * S(total) - S(a[c]));
    }
  }
  template <class S, class Put>
  METAFAST_HD void target_gradient(const Outputs<T>& z, const Target<T>&, const ClassWeights<T>& weights,
                                   Put put) const {
    S all, zc;
    log_sum_exp(z, all);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc),
        put(c, S(weights[c] * (T(1) - smoothing)) * (all - zc));
  }
  template <class S, class Put>
  METAFAST_HD void ignored_gradient(const Outputs<T>& z, Put put) const {
    const T mean = mean_dot(z);
    S zc;
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc),
        put(c, S(T(0)) * probability(z.kept[c], zc, mean));
  }

 private:
  METAFAST_HD static T probability(T p, T, T) { return p; }
  METAFAST_HD static Dual<T> probability(T p, Dual<T> z, T mean) { return {p, p * (z.d - mean)}; }
};

template <class T>
using CrossEntropy = Classes<T, CrossEntropyOfRow<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
