// a where b is true, which is not zero; -inf elsewhere, of which a softmax makes zero.
#pragma once

#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Hide {
  template <class T>
  static MF_HD T value(T a, T b) {
    return b != T(0) ? a : -Bits<T>::kInfinity;
  }
  template <class S>
  static MF_HD S left(S, S b) {
    return select(value_of(b) != 0, S(1), S(0));
  }
  template <class S>
  static MF_HD S right(S, S) {
    return S(0);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
