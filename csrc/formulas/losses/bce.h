// Binary cross-entropy of a probability z: -y log z - (1 - y) log(1 - z). As torch has it, logarithms are -100 at least,
// and the slope's denominator 1e-12. Outside 0 to 1 the value is NaN.
#pragma once

#include "formulas/losses/elementwise.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct BernoulliLoss {
  METAFAST_HD explicit BernoulliLoss(const LossPlan&) {}
  METAFAST_HD T value(T z, T y) const { return -y * log_of(z) - (T(1) - y) * log_of_rest(z); }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    return (z - S(y)) / variance(z);
  }
  METAFAST_HD T target_slope(T z, T) const { return log_of_rest(z) - log_of(z); }
  METAFAST_HD Dual<T> target_slope(Dual<T> z, T y) const { return {target_slope(z.v, y), -z.d / variance(z.v)}; }

  template <class S>
  METAFAST_HD static S variance(S z) {
    const S product = z * (S(1) - z);
    return value_of(product) < T(1e-12) ? S(T(1e-12)) : product;
  }

 private:
  METAFAST_HD static T bounded(T logarithm) { return logarithm < T(-100) ? T(-100) : logarithm; }
  METAFAST_HD static T log_of(T z) { return bounded(log(z)); }
  // log(1 - z), where a small z would be lost in 1 - z.
  METAFAST_HD static T log_of_rest(T z) {
    return z < T(0.5) ? -log1p01((z < T(0) ? T(0) : z) / (T(1) - z)) : bounded(log(T(1) - z));
  }
};

template <class T>
using Bce = Elementwise<T, BernoulliLoss<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
