// |x|, whose slope at 0 is taken for 0, as in torch.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Abs {
  MF_HD explicit Abs(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return magnitude(x);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) > 0, S(1), select(value_of(x) < 0, S(-1), S(0)));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
