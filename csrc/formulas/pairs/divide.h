// a / b
#pragma once

#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Divide {
  template <class T>
  static MF_HD T value(T a, T b) {
    return a / b;
  }
  template <class S>
  static MF_HD S left(S, S b) {
    return S(1) / b;
  }
  template <class S>
  static MF_HD S right(S a, S b) {
    return -(a / b) / b;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
