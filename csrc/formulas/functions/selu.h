// A scaled ELU that keeps mean and variance: c x where x > 0, c a (exp(x) - 1) elsewhere.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Selu {
  static constexpr double kAlpha = 1.6732632423543772848, kScale = 1.0507009873554804934;
  MF_HD explicit Selu(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    const T negative = T(kAlpha * kScale) * expm1(x < T(0) ? x : T(0));
    return x > T(0) ? T(kScale) * x : negative + T(0) * x;  // 0 * x carries NaN through
  }
  template <class S>
  MF_HD S slope(S x, S y) const {
    return select(value_of(x) > 0, S(kScale), y + S(kAlpha * kScale));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
