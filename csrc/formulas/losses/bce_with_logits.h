// Binary cross-entropy of p = sigmoid(z): -w y log p - (1 - y) log(1 - p), w being pos_weight. With w = 1 that is
// max(z, 0) - z y + log(1 + exp(-|z|)).
#pragma once

#include "formulas/losses/elementwise.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct LogisticLoss {
  T extra;  // w - 1
  METAFAST_HD explicit LogisticLoss(const LossPlan& plan) : extra(T(plan.attribute[0] - 1)) {}
  METAFAST_HD T value(T z, T y) const {
    const T plain = (z < T(0) ? T(0) : z) - z * y + log1p01(exp(-magnitude(z)));
    return extra == T(0) ? plain : plain + extra * y * minus_log(z);
  }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    return extra == T(0) ? sigmoid(z) - S(y) : sigmoid(z) - S(y) - S(extra * y) * sigmoid(-z);
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T) const {
    return extra == T(0) ? -z : S(extra) * minus_log(z) - z;
  }

 private:
  // -log sigmoid(z)
  METAFAST_HD static T minus_log(T z) { return (z < T(0) ? -z : T(0)) + log1p01(exp(-magnitude(z))); }
  METAFAST_HD static Dual<T> minus_log(Dual<T> z) { return {minus_log(z.v), -sigmoid(-z.v) * z.d}; }
};

template <class T>
using BceWithLogits = Elementwise<T, LogisticLoss<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
