// a b
#pragma once

#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Multiply {
  template <class T>
  static MF_HD T value(T a, T b) {
    return a * b;
  }
  template <class S>
  static MF_HD S left(S, S b) {
    return b;
  }
  template <class S>
  static MF_HD S right(S a, S) {
    return a;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
