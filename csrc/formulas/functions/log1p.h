// log(1 + x), exact for small x too.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Log1p {
  MF_HD explicit Log1p(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return log1p(x);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return S(1) / (S(1) + x);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
