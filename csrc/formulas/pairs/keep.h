// a where b is true, which is not zero; 0 elsewhere, whatever a is.
#pragma once

#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Keep {
  template <class T>
  static MF_HD T value(T a, T b) {
    return b != T(0) ? a : T(0);
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
