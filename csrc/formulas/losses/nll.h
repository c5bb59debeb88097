// The negative log-likelihood of a class whose log-probabilities the outputs are: -z_label.
#pragma once

#include "formulas/losses/loss.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Nll {
  METAFAST_HD explicit Nll(const LossPlan&) {}
  template <class S>
  METAFAST_HD S value(const Outputs<T>& z, const Target<T>& y) const {
    S of_label;
    z.get(y.label, of_label);
    return -of_label;
  }
  template <class S, class Put>
  METAFAST_HD void gradient(const Outputs<T>&, const Target<T>& y, Put put) const {
    put(y.label, S(-1));
  }
  template <class S, class Put>
  METAFAST_HD void target_gradient(const Outputs<T>&, const Target<T>&, Put) const {}
};

}  // namespace METAFAST_ISA
}  // namespace metafast
