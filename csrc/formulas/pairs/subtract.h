// a - b
#pragma once

#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Subtract {
  template <class T>
  static MF_HD T value(T a, T b) {
    return a - b;
  }
  template <class S>
  static MF_HD S left(S, S) {
    return S(1);
  }
  template <class S>
  static MF_HD S right(S, S) {
    return S(-1);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
