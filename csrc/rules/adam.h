// Adam (Kingma and Ba 2015, algorithm 1) and AdamW (Loshchilov and Hutter 2019), as torch.optim has them.
//
//   d = g + w theta (Adam),   theta <- (1 - a w) theta (AdamW)
//   m' = b1 m + (1 - b1) d,   v' = b2 v + (1 - b2) d^2,   u = v' or, with amsgrad, the largest v' so far
//   theta' = theta - a / (1 - b1^(k+1)) * m' / (sqrt(u / (1 - b2^(k+1))) + eps)
//
// The slope of the root at 0 is taken for 0, so an element whose gradients were all exactly zero has finite derivatives;
// and where root and eps are both zero the element stays where it is.
#pragma once

#include "rules/rule.h"

namespace metafast {
namespace METAFAST_ISA {

template <bool kAmsgrad>
struct AdamLink : LinkDefaults {
  static constexpr int kStates = kAmsgrad ? 3 : 2, kHypers = 5, kDerived = 5;
  enum { kLr, kBeta1, kBeta2, kEps, kWeightDecay };
  // Detached: no derivative through the denominator.
  enum Flags { kDecoupled = 1, kDetached = 2 };

  // Divisions are slow, and most are of numbers that are the same for all elements.
  enum {
    kPower1,
    kPower2,
    kInverse1,
    kInverse2,
    kRate
  };  // b1^k, b2^k, 1 / (1 - b1^(k+1)), the same of b2, a times the third
  template <class S>
  MF_HD static void derive(LinkSettings<S, AdamLink>& s) {
    s.derived[kPower1] = power(s.hyper[kBeta1], s.k);
    s.derived[kPower2] = power(s.hyper[kBeta2], s.k);
    s.derived[kInverse1] = S(1) / (S(1) - s.derived[kPower1] * s.hyper[kBeta1]);
    s.derived[kInverse2] = S(1) / (S(1) - s.derived[kPower2] * s.hyper[kBeta2]);
    s.derived[kRate] = s.hyper[kLr] * s.derived[kInverse1];
  }

  template <class S>
  MF_HD static void step(const LinkSettings<S, AdamLink>& s, LinkElement<S, AdamLink>& e) {
    const S lr = s.hyper[kLr], b1 = s.hyper[kBeta1], b2 = s.hyper[kBeta2], decay = s.hyper[kWeightDecay];
    const bool decoupled = s.flags & kDecoupled;
    const S d = decoupled ? e.g : e.g + decay * e.theta;
    if (decoupled) e.theta = e.theta - lr * decay * e.theta;
    const S m = b1 * e.state[0] + (S(1) - b1) * d;
    const S v = b2 * e.state[1] + (S(1) - b2) * d * d;
    S largest = v;
    if constexpr (kAmsgrad) e.state[2] = largest = if_positive(v - e.state[2], v, e.state[2]);
    const S root = sqrt_or_zero(largest * s.derived[kInverse2]);
    const S below = s.flags & kDetached ? detached(root + s.hyper[kEps]) : root + s.hyper[kEps];
    e.theta = e.theta - s.derived[kRate] * (m / divisor(below));
    e.state[0] = m, e.state[1] = v;
  }

  template <class S>
  MF_HD static void adjoint(const LinkSettings<S, AdamLink>& s, const LinkElement<S, AdamLink>& before,
                            const LinkState<S, AdamLink>& after, LinkElement<S, AdamLink>& bar, S* hyper_bar) {
    const S lr = s.hyper[kLr], b1 = s.hyper[kBeta1], b2 = s.hyper[kBeta2], decay = s.hyper[kWeightDecay];
    const bool decoupled = s.flags & kDecoupled, detached = s.flags & kDetached;
    const S zero = S(0), one = S(1);
    const S d = decoupled ? before.g : before.g + decay * before.theta;
    const S m = after[0], v = after[1], largest = after[kStates - 1];
    const S inverse1 = s.derived[kInverse1], inverse2 = s.derived[kInverse2], rate = s.derived[kRate];
    const S root = sqrt_or_zero(largest * inverse2);
    const S inverse = one / divisor(root + s.hyper[kEps]);
    const S quotient_bar = -(rate * bar.theta);
    const S m_bar = bar.state[0] + quotient_bar * inverse;
    const S below_bar = detached ? zero : -(quotient_bar * m * inverse * inverse);
    const S root_slope = S(0.5) * inverse2 / divisor(root);
    S v_bar = bar.state[1] + below_bar * root_slope;
    if constexpr (kAmsgrad) {
      const S largest_bar = bar.state[2] + below_bar * root_slope, rising = v - before.state[2];
      v_bar = bar.state[1] + if_positive(rising, largest_bar, zero);
      bar.state[2] = if_positive(rising, zero, largest_bar);
    }
    const S d_bar = (one - b1) * m_bar + S(2) * (one - b2) * d * v_bar;
    if (hyper_bar) {
      const S quotient = m * inverse, rate_bar = -(bar.theta * quotient);
      hyper_bar[kLr] = hyper_bar[kLr] + rate_bar * inverse1 - (decoupled ? bar.theta * decay * before.theta : zero);
      hyper_bar[kEps] = hyper_bar[kEps] + below_bar;
      const S steps = S(s.k + 1);
      hyper_bar[kBeta1] =
          hyper_bar[kBeta1] + m_bar * (before.state[0] - d) + rate_bar * rate * inverse1 * steps * s.derived[kPower1];
      hyper_bar[kBeta2] = hyper_bar[kBeta2] + v_bar * (before.state[1] - d * d) +
                          below_bar * root_slope * largest * inverse2 * steps * s.derived[kPower2];
      hyper_bar[kWeightDecay] =
          hyper_bar[kWeightDecay] + (decoupled ? -(bar.theta * lr * before.theta) : d_bar * before.theta);
    }
    bar.state[0] = b1 * m_bar;
    bar.state[1] = b2 * v_bar;
    bar.theta = decoupled ? bar.theta - lr * decay * bar.theta : bar.theta + decay * d_bar;
    bar.g = bar.g + d_bar;
  }

 private:
  template <class S>
  MF_HD static S detached(S x) {
    return x;
  }
  template <class T>
  MF_HD static Dual<T> detached(Dual<T> x) {
    return Dual<T>(x.v);
  }
};

using Adam = AdamLink<false>;
using Amsgrad = AdamLink<true>;

}  // namespace METAFAST_ISA
}  // namespace metafast
