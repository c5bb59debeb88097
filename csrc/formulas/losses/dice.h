// Dice's: 1 - (2 sum p y + s) / (sum p + sum y + s) with p = sigmoid(z) and sums over all of an example's outputs.
#pragma once

#include "formulas/losses/loss.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Dice : LossDefaults {
  T smooth;
  METAFAST_HD explicit Dice(const LossPlan& plan) : smooth(T(plan.attribute[0])) {}
  template <class S>
  METAFAST_HD S value(const Outputs<T>& z, const Target<T>& y) const {
    const Overlap<S> o = overlap<S>(z, y);
    return S(1) - o.shared / o.whole;
  }
  // d value / d p_c = (shared - 2 y_c whole) / whole^2
  template <class S, class Put>
  METAFAST_HD void gradient(const Outputs<T>& z, const Target<T>& y, Put put) const {
    const Overlap<S> o = overlap<S>(z, y);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) {
      const S p = probability<S>(z, c);
      put(c, p * (S(1) - p) * (o.shared - S(T(2) * y[c]) * o.whole) / (o.whole * o.whole));
    }
  }
  template <class S, class Put>
  METAFAST_HD void target_gradient(const Outputs<T>& z, const Target<T>& y, Put put) const {
    const Overlap<S> o = overlap<S>(z, y);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c)
        put(c, (o.shared - S(2) * probability<S>(z, c) * o.whole) / (o.whole * o.whole));
  }

 private:
  template <class S>
  struct Overlap {
    S shared, whole;
  };
  template <class S>
  METAFAST_HD Overlap<S> overlap(const Outputs<T>& z, const Target<T>& y) const {
    Overlap<S> o{S(smooth), S(smooth)};
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) {
      const S p = probability<S>(z, c);
      o.shared += S(T(2) * y[c]) * p, o.whole += p + S(y[c]);
    }
    return o;
  }
  template <class S>
  METAFAST_HD S probability(const Outputs<T>& z, int64_t c) const {
    S zc;
    z.get(c, zc);
    return sigmoid(zc);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
