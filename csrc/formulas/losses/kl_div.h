// Kullback and Leibler's divergence from a log-probability z to a probability y: y (log y - z), 0 at y = 0. With
// log_target, y is a log-probability too.
#pragma once

#include "formulas/losses/elementwise.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Divergence {
  bool log_target;
  METAFAST_HD explicit Divergence(const LossPlan& plan) : log_target(plan.attribute[0] != 0) {}
  METAFAST_HD T value(T z, T y) const {
    return log_target ? exp(y) * (y - z) : (y == T(0) ? T(0) : y * log(y)) - y * z;
  }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    return S(log_target ? -exp(y) : -y) + S(0) * z;  // NaN where z is, as the value is
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T y) const {
    return log_target ? S(exp(y)) * (S(y + T(1)) - z) : S(log(y) + T(1)) - z;
  }
};

template <class T>
using KlDiv = Elementwise<T, Divergence<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
