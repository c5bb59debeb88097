// x tanh(softplus(x)).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Mish {
  MF_HD explicit Mish(const Node&) {}
  // tanh(log(1 + e)) = n / (n + 2) with e = exp(x), n = e (e + 2); it rounds to 1 where x is 20.
  template <class S>
  MF_HD static S exponential(S x) {
    return exp(select(value_of(x) > 20, S(20), x));
  }
  template <class T>
  MF_HD T value(T x) const {
    const T e = exponential(x), n = e * (e + T(2));
    return x * (n / (n + T(2)));
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    const S e = exponential(x), n = e * (e + S(2)), below = n + S(2);
    return n / below + x * (S(4) * e * (e + S(1)) / (below * below));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
