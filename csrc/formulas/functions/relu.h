// max(x, 0).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Relu {
  MF_HD explicit Relu(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return x < T(0) ? T(0) : x;
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) > 0, S(1), S(0));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
