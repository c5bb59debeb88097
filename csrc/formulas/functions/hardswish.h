// x hardsigmoid(x). Its second derivative at the kinks is 0, as in torch.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Hardswish {
  MF_HD explicit Hardswish(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    const T part = (x + T(3)) / T(6);
    return x * (part < T(0) ? T(0) : part > T(1) ? T(1) : part);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) <= -3, S(0), select(value_of(x) >= 3, S(1), x / S(3) + S(0.5)));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
