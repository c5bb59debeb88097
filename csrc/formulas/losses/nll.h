// The negative log-likelihood of a class whose log-probabilities the outputs are: -z_label.
#pragma once

#include "formulas/losses/classes.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct NllOfRow : RowDefaults<T> {
  METAFAST_HD explicit NllOfRow(const LossPlan&) {}
  template <class S>
  METAFAST_HD S value(const Outputs<T>& z, const Target<T>& y, const ClassWeights<T>& weights) const {
    S of_label;
    z.get(y.label(), of_label);
    return -(S(weights[y.label()]) * of_label);
  }
  template <class S, class Put>
  METAFAST_HD void gradient(const Outputs<T>&, const Target<T>& y, const ClassWeights<T>& weights, Put put) const {
    put(y.label(), S(-weights[y.label()]));
  }
  template <class S, class Put>
  METAFAST_HD void target_gradient(const Outputs<T>&, const Target<T>&, const ClassWeights<T>&, Put) const {}
};

template <class T>
using Nll = Classes<T, NllOfRow<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
