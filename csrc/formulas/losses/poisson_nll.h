// Poisson's negative log-likelihood of a count y without log y!: exp(z) - y z for a logarithm z of the rate, or
// z - y log(z + eps) for the rate itself.
#pragma once

#include "formulas/losses/elementwise.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct PoissonLoss {
  bool log_input;
  T eps;
  METAFAST_HD explicit PoissonLoss(const LossPlan& plan)
      : log_input(plan.attribute[0] != 0), eps(T(plan.attribute[1])) {}
  METAFAST_HD T value(T z, T y) const { return log_input ? exp(z) - y * z : z - y * log(z + eps); }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    return log_input ? exp(z) - S(y) : S(1) - S(y) / (z + S(eps));
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T) const {
    return log_input ? -z : -log(z + S(eps));
  }
};

template <class T>
using PoissonNll = Elementwise<T, PoissonLoss<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
