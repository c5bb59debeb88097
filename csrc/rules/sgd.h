// Stochastic gradient descent as torch.optim.SGD: plain, and with momentum, dampening, Nesterov's form and weight decay.
#pragma once

#include "rules/rule.h"

namespace metafast {
namespace METAFAST_ISA {

//   theta' = theta - a g
// The machines know this link by name: a product may take the step for it, or be scaled instead of its vector.
struct Descent : LinkDefaults {
  static constexpr int kStates = 0, kHypers = 1;
  static constexpr bool kReadsGradient = false, kAffine = true;
  template <class S>
  MF_HD static void step(const LinkSettings<S, Descent>& s, LinkElement<S, Descent>& e) {
    e.theta = e.theta - s.hyper[0] * e.g;
  }
  template <class S>
  MF_HD static void adjoint(const LinkSettings<S, Descent>& s, const LinkElement<S, Descent>& before,
                            const LinkState<S, Descent>&, LinkElement<S, Descent>& bar, S* hyper_bar) {
    if (hyper_bar) hyper_bar[0] = hyper_bar[0] - bar.theta * before.g;
    bar.g = bar.g - s.hyper[0] * bar.theta;
  }
};

//   d = g + w theta,   b' = mu b + (1 - tau) d   (b' = d at the first step),   theta' = theta - a (d + mu b' or b')
struct Momentum : LinkDefaults {
  static constexpr int kStates = 1, kHypers = 4;
  static constexpr bool kReadsGradient = false, kReadsState = false, kAffine = true;
  enum { kLr, kMomentum, kDampening, kWeightDecay };
  enum Flags { kNesterov = 1 };

  template <class S>
  MF_HD static void step(const LinkSettings<S, Momentum>& s, LinkElement<S, Momentum>& e) {
    const S mu = s.hyper[kMomentum];
    const S d = e.g + s.hyper[kWeightDecay] * e.theta;
    const S b = s.k == 0 ? d : mu * e.state[0] + (S(1) - s.hyper[kDampening]) * d;
    e.state[0] = b;
    e.theta = e.theta - s.hyper[kLr] * (s.flags & kNesterov ? d + mu * b : b);
  }

  template <class S>
  MF_HD static void adjoint(const LinkSettings<S, Momentum>& s, const LinkElement<S, Momentum>& before,
                            const LinkState<S, Momentum>& after, LinkElement<S, Momentum>& bar, S* hyper_bar) {
    const bool first = s.k == 0, nesterov = s.flags & kNesterov;
    const S mu = s.hyper[kMomentum], keep = S(1) - s.hyper[kDampening], decay = s.hyper[kWeightDecay];
    const S moved = -(s.hyper[kLr] * bar.theta);  // the bar of what is multiplied by the rate
    const S b_bar = bar.state[0] + (nesterov ? mu * moved : moved);
    const S d_bar = (first ? b_bar : keep * b_bar) + (nesterov ? moved : S(0));
    if (hyper_bar) {
      const S d = before.g + decay * before.theta;
      hyper_bar[kLr] = hyper_bar[kLr] - bar.theta * (nesterov ? d + mu * after[0] : after[0]);
      if (nesterov) hyper_bar[kMomentum] = hyper_bar[kMomentum] + moved * after[0];
      if (!first) {
        hyper_bar[kMomentum] = hyper_bar[kMomentum] + b_bar * before.state[0];
        hyper_bar[kDampening] = hyper_bar[kDampening] - b_bar * d;
      }
      hyper_bar[kWeightDecay] = hyper_bar[kWeightDecay] + d_bar * before.theta;
    }
    bar.state[0] = first ? S(0) : mu * b_bar;
    bar.theta = bar.theta + decay * d_bar;
    bar.g = bar.g + d_bar;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
