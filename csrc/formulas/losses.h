// Losses of one example, their gradients and the tangents of those (docs/maths.md, section 6).
//
// A loss l(z, y) supplies, for a generic scalar S,
//   value(z, target)          the loss of one example
//   gradient(z, target, g)    dl/dz_c for every output c, written through g(c, dl/dz_c)
//   target_gradient(...)      dl/dy_c, for losses with real targets
// and the passes follow (losses.h). A task's loss is L = sum_i w_i l_i / sum_i w_i, with w = 1 where none are given.
// Host and device compile the same text; METAFAST_HD says so to nvcc and nothing to the others.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

#if defined(__CUDACC__)
#define METAFAST_HD __host__ __device__
#else
#define METAFAST_HD
#endif
#if defined(__CUDA_ARCH__)  // a few examples for each thread: unrolling gains nothing but code
#define METAFAST_LOOP _Pragma("unroll 1")
#else
#define METAFAST_LOOP
#endif

// X(kind, function of the outputs and targets of one example)
#define METAFAST_LOSSES(X)                           \
  X(kCrossEntropy, CrossEntropy<T>)                  \
  X(kMse, Elementwise<T, Square<T>>)                 \
  X(kBceWithLogits, Elementwise<T, LogisticLoss<T>>) \
  X(kHuber, Elementwise<T, HuberLoss<T>>)            \
  X(kMultiMargin, MultiMargin<T>)

namespace metafast {
namespace METAFAST_ISA {

// Where element c stands among rows of `channels`, `ld` apart. Most often there is one row, and divisions are slow.
MF_HD int64_t place_of(int64_t c, int32_t channels, int64_t ld) {
  const uint32_t place = uint32_t(c), n = uint32_t(channels);  // 64-bit divisions are slower still, on a device very
  return place < n ? place : int64_t(place / n) * ld + place % n;
}

// The outputs of one example, as values or duals: element c stands at (position, channel) = (c / channels, c % channels).
template <class T>
struct Outputs {
  const T *value, *dot;
  T* kept;  // cross-entropy's, at one position: room for a number per output, from forward to the later passes
  int32_t channels, ld;
  int64_t count;
  METAFAST_HD int64_t at(int64_t c) const { return place_of(c, channels, ld); }
  METAFAST_HD void get(int64_t c, T& out) const { out = value[at(c)]; }
  METAFAST_HD void get(int64_t c, Dual<T>& out) const { out = Dual<T>(value[at(c)], dot ? dot[at(c)] : T(0)); }
};

// Targets of one example: a class, or reals that stand like the outputs.
template <class T>
struct Target {
  int64_t label;  // -1: real targets
  const T* real;
  int32_t channels, ld;
  METAFAST_HD T operator[](int64_t c) const { return real[place_of(c, channels, ld)]; }
};

// l = log sum_c exp z_c - sum_c q_c z_c with the wanted distribution q; exp(z - max) / sum is computed once, in forward,
// and kept: p' = p (z' - sum_c p_c z'_c).
template <class T>
struct CrossEntropy {
  T smoothing;
  METAFAST_HD explicit CrossEntropy(const LossPlan& plan) : smoothing(T(plan.attribute[0])) {}

  METAFAST_HD T wanted_probability(const Target<T>& y, int64_t c, int64_t n) const {
    const T q = y.label >= 0 ? (c == y.label ? T(1) : T(0)) : y[c];
    return (T(1) - smoothing) * q + smoothing / T(n);
  }
  METAFAST_HD T wanted_total(const Target<T>& y, int64_t n) const {
    if (y.label >= 0) return T(1);
    T total = T(0);
    METAFAST_LOOP for (int64_t c = 0; c < n; ++c) total += wanted_probability(y, c, n);
    return total;
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
  METAFAST_HD T mean_dot(const Outputs<T>& z) const {
    T sum = T(0);
    if (z.dot) METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) sum += z.kept[c] * z.dot[c];
    return sum;
  }

  template <class S>
  METAFAST_HD S value(const Outputs<T>& z, const Target<T>& y) const {
    S all, zc;
    log_sum_exp(z, all);
    if (y.label >= 0 && smoothing == T(0)) return z.get(y.label, zc), all - zc;
    S loss(0);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc),
        loss += S(wanted_probability(y, c, z.count)) * (all - zc);
    return loss;
  }
  template <class S, class Put>
  METAFAST_HD void gradient(const Outputs<T>& z, const Target<T>& y, Put put) const {
    const T total = wanted_total(y, z.count), mean = mean_dot(z);
    S zc;
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) {
      z.get(c, zc);
      put(c, probability(z.kept[c], zc, mean) * S(total) - S(wanted_probability(y, c, z.count)));
    }
  }
  template <class S, class Put>
  METAFAST_HD void target_gradient(const Outputs<T>& z, const Target<T>&, Put put) const {
    S all, zc;
    log_sum_exp(z, all);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc), put(c, S(T(1) - smoothing) * (all - zc));
  }

 private:
  METAFAST_HD static T probability(T p, T, T) { return p; }
  METAFAST_HD static Dual<T> probability(T p, Dual<T> z, T mean) { return {p, p * (z.d - mean)}; }
};

// Losses that are the mean over outputs of a function of (z_c, y_c): Element supplies value, slope and target_slope.
template <class T, class Element>
struct Elementwise {
  Element element;
  METAFAST_HD explicit Elementwise(const LossPlan& plan) : element(plan) {}
  template <class S>
  METAFAST_HD S value(const Outputs<T>& z, const Target<T>& y) const {
    S sum(0), zc;
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc), sum += at(zc, y[c]);
    return sum / S(T(z.count));
  }
  template <class S, class Put>
  METAFAST_HD void gradient(const Outputs<T>& z, const Target<T>& y, Put put) const {
    S zc;
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc), put(c, element.slope(zc, y[c]) / S(T(z.count)));
  }
  template <class S, class Put>
  METAFAST_HD void target_gradient(const Outputs<T>& z, const Target<T>& y, Put put) const {
    S zc;
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc),
        put(c, element.target_slope(zc, y[c]) / S(T(z.count)));
  }

 private:
  METAFAST_HD T at(T z, T y) const { return element.value(z, y); }
  METAFAST_HD Dual<T> at(Dual<T> z, T y) const { return {element.value(z.v, y), element.slope(z.v, y) * z.d}; }
};

template <class T>
struct Square {
  METAFAST_HD explicit Square(const LossPlan&) {}
  METAFAST_HD T value(T z, T y) const { return (z - y) * (z - y); }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    return S(T(2)) * (z - S(y));
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T y) const {
    return -slope(z, y);
  }
};

// Binary cross-entropy of sigmoid(z): max(z, 0) - z y + log(1 + exp(-|z|)).
template <class T>
struct LogisticLoss {
  METAFAST_HD explicit LogisticLoss(const LossPlan&) {}
  METAFAST_HD T value(T z, T y) const { return (z < T(0) ? T(0) : z) - z * y + log1p01(exp(-magnitude(z))); }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    return sigmoid(z) - S(y);
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T) const {
    return -z;
  }
};

// d^2 / 2 where |d| <= delta, delta (|d| - delta / 2) beyond.
template <class T>
struct HuberLoss {
  T delta;
  METAFAST_HD explicit HuberLoss(const LossPlan& plan) : delta(T(plan.attribute[0])) {}
  METAFAST_HD T value(T z, T y) const {
    const T d = magnitude(z - y);
    return d <= delta ? T(0.5) * d * d : delta * (d - T(0.5) * delta);
  }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    const S d = z - S(y);
    return value_of(d) > delta ? S(delta) : value_of(d) < -delta ? S(-delta) : d;
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T y) const {
    return -slope(z, y);
  }
};

// sum over c != label of max(0, margin - z_label + z_c)^p / outputs, p = 1 or 2.
template <class T>
struct MultiMargin {
  bool squared;
  T margin;
  METAFAST_HD explicit MultiMargin(const LossPlan& plan)
      : squared(plan.attribute[0] == 2), margin(T(plan.attribute[1])) {}
  template <class S>
  METAFAST_HD S value(const Outputs<T>& z, const Target<T>& y) const {
    S sum(0);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) if (c != y.label) {
      const S gap = excess<S>(z, y, c);
      if (!(value_of(gap) <= 0)) sum += squared ? gap * gap : gap;
    }
    return sum / S(T(z.count));
  }
  template <class S, class Put>
  METAFAST_HD void gradient(const Outputs<T>& z, const Target<T>& y, Put put) const {
    S total(0);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) if (c != y.label) {
      const S gap = excess<S>(z, y, c);
      const S active = squared ? S(T(2)) * gap : S(T(1));
      const S slope = (!(value_of(gap) <= 0) ? active : S(0)) / S(T(z.count));
      total += slope;
      put(c, slope);
    }
    put(y.label, -total);
  }
  template <class S, class Put>
  METAFAST_HD void target_gradient(const Outputs<T>&, const Target<T>&, Put) const {}

 private:
  template <class S>
  METAFAST_HD S excess(const Outputs<T>& z, const Target<T>& y, int64_t c) const {
    S zc, zy;
    z.get(c, zc), z.get(y.label, zy);
    return S(margin) - zy + zc;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
