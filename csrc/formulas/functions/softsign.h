// x / (1 + |x|). The slope of |x| at 0 is taken for 0, as in torch.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Softsign {
  MF_HD explicit Softsign(const Node&) {}
  template <class S>
  MF_HD static S below(S x) {
    return S(1) + select(value_of(x) > 0, x, select(value_of(x) < 0, -x, S(0) * x));
  }
  template <class T>
  MF_HD T value(T x) const {
    return x / below(x);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return S(1) / (below(x) * below(x));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
