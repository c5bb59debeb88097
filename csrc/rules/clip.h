// Clipping of gradients: by the norm of a task's whole gradient, as torch.nn.utils.clip_grad_norm_, or element by element.
#pragma once

#include "rules/rule.h"

namespace metafast {
namespace METAFAST_ISA {

//   g' = g min(1, c / (|g| + 1e-6)),   |g|^2 the sum over all that the inner loop moves
struct ClipNorm : LinkDefaults {
  static constexpr int kStates = 0, kHypers = 1;
  static constexpr bool kScales = true;
  template <class S>
  MF_HD static S scale(const LinkSettings<S, ClipNorm>& s, S sum_of_squares) {
    const S ratio = s.hyper[0] / (sqrt_or_zero(sum_of_squares) + S(1e-6));
    return if_positive(ratio - S(1), S(1), ratio);  // the ratio where it is NaN, as torch has it
  }
};

//   g' = min(max(g, -c), c)
struct ClipValue : LinkDefaults {
  static constexpr int kStates = 0, kHypers = 1;
  template <class S>
  MF_HD static void step(const LinkSettings<S, ClipValue>& s, LinkElement<S, ClipValue>& e) {
    const S c = s.hyper[0];
    e.g = if_positive(e.g - c, c, if_positive(-c - e.g, -c, e.g));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
