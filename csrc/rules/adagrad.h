// Adagrad (Duchi et al. 2011) as torch.optim.Adagrad.
//
//   d = g + w theta,   s' = s + d^2   (s = s_0 before the first step),   theta' = theta - a / (1 + k b) d / (sqrt(s') + eps)
//
// The slope of the root at 0 is taken for 0; where root and eps are both zero the element stays where it is.
#pragma once

#include "rules/rule.h"

namespace metafast {
namespace METAFAST_ISA {

struct Adagrad : LinkDefaults {
  static constexpr int kStates = 1, kHypers = 5;
  enum { kLr, kLrDecay, kWeightDecay, kInitial, kEps };

  template <class S>
  MF_HD static void step(const LinkSettings<S, Adagrad>& s, LinkElement<S, Adagrad>& e) {
    const S d = e.g + s.hyper[kWeightDecay] * e.theta;
    const S sum = (s.k == 0 ? s.hyper[kInitial] : e.state[0]) + d * d;
    const S below = sqrt_or_zero(sum) + s.hyper[kEps];
    const S quotient = d / divisor(below);
    e.theta = e.theta - s.hyper[kLr] / (S(1) + S(s.k) * s.hyper[kLrDecay]) * quotient;
    e.state[0] = sum;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
