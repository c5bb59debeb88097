// Losses that are the mean over outputs, or the sum, of a function of (z_c, y_c): Element supplies value, slope and
// target_slope.
#pragma once

#include "formulas/losses/loss.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T, class Element>
struct Elementwise : LossDefaults {
  Element element;
  bool sums;
  METAFAST_HD explicit Elementwise(const LossPlan& plan) : element(plan), sums(plan.sums) {}
  template <class S>
  METAFAST_HD S value(const Outputs<T>& z, const Target<T>& y) const {
    S sum(0), zc;
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc), sum += at(zc, y[c]);
    return sum / S(divisor(z));
  }
  template <class S, class Put>
  METAFAST_HD void gradient(const Outputs<T>& z, const Target<T>& y, Put put) const {
    S zc;
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc), put(c, element.slope(zc, y[c]) / S(divisor(z)));
  }
  template <class S, class Put>
  METAFAST_HD void target_gradient(const Outputs<T>& z, const Target<T>& y, Put put) const {
    S zc;
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) z.get(c, zc),
        put(c, element.target_slope(zc, y[c]) / S(divisor(z)));
  }

 private:
  METAFAST_HD T divisor(const Outputs<T>& z) const { return sums ? T(1) : T(z.count); }
  METAFAST_HD T at(T z, T y) const { return element.value(z, y); }
  METAFAST_HD Dual<T> at(Dual<T> z, T y) const { return {element.value(z.v, y), element.slope(z.v, y) * z.d}; }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
