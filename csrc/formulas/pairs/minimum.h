// The smaller of two; where they are equal each has half of the derivative.
#pragma once

#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Minimum {
  // The share of a: half where they are equal, or one of them is not a number.
  template <class T>
  static MF_HD T share(T a, T b) {
    return select(a < b, T(1), select(b < a, T(0), T(0.5)));
  }
  template <class T>
  static MF_HD T value(T a, T b) {
    return a < b ? a : b < a ? b : T(0.5) * a + T(0.5) * b;
  }
  template <class S>
  static MF_HD S left(S a, S b) {
    return S(share(value_of(a), value_of(b)));
  }
  template <class S>
  static MF_HD S right(S a, S b) {
    return S(1) - S(share(value_of(a), value_of(b)));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
