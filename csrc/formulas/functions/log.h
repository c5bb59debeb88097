// log(x).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Log {
  MF_HD explicit Log(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return log(x);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return S(1) / x;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
