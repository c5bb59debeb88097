// Absolute error: |z - y|, whose slope at 0 is 0.
#pragma once

#include "formulas/losses/elementwise.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct AbsoluteError {
  METAFAST_HD explicit AbsoluteError(const LossPlan&) {}
  METAFAST_HD T value(T z, T y) const { return magnitude(z - y); }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    const S d = z - S(y);
    return value_of(d) > 0 ? S(1) : value_of(d) < 0 ? S(-1) : S(0) * d;
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T y) const {
    return -slope(z, y);
  }
};

template <class T>
using L1 = Elementwise<T, AbsoluteError<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
