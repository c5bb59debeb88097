// 1 where a >= b, 0 elsewhere, and where one of them is not a number.
#pragma once

#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct AtLeast {
  template <class T>
  static MF_HD T value(T a, T b) {
    return a >= b ? T(1) : T(0);
  }
  template <class S>
  static MF_HD S left(S, S) {
    return S(0);
  }
  template <class S>
  static MF_HD S right(S, S) {
    return S(0);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
