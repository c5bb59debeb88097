// Penalties that a rule sees: towards the initial weights (iMAML, Rajeswaran et al. 2019, eq. 4), and on their magnitude.
#pragma once

#include "rules/rule.h"

namespace metafast {
namespace METAFAST_ISA {

//   g' = g + s (theta - theta_0), the gradient of s / 2 |theta - theta_0|^2
struct Proximal : LinkDefaults {
  static constexpr int kStates = 0, kHypers = 1;
  static constexpr bool kUsesStart = true;
  template <class S>
  MF_HD static void step(const LinkSettings<S, Proximal>& s, LinkElement<S, Proximal>& e) {
    e.g = e.g + s.hyper[0] * (e.theta - e.start);
  }
};

//   theta' = sign(theta) max(|theta| - s, 0), the proximal step of s |theta|_1 (Beck and Teboulle 2009)
struct SoftThreshold : LinkDefaults {
  static constexpr int kStates = 0, kHypers = 1;
  template <class S>
  MF_HD static void step(const LinkSettings<S, SoftThreshold>& s, LinkElement<S, SoftThreshold>& e) {
    const S above = e.theta - s.hyper[0], below = -e.theta - s.hyper[0];
    e.theta = if_positive(above, above, if_positive(below, -below, S(0) * e.theta));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
