// Exact through the last `argument` steps; gradients of the steps before them are constants (Antoniou et al. 2019, section 4:
// derivative-order annealing, step by step).
#pragma once

#include "estimators/unrolled.h"

namespace metafast {

struct Annealed {
  static constexpr bool kSecondOrder = true;
  static constexpr int32_t reverse_steps(int32_t steps, int32_t) { return steps; }
  template <class M>
  static void stage(M& m, int32_t i) {
    unrolled(m, i, [&](int32_t k) {
      m.replay(k), m.step_adjoint(k);
      if (k >= m.steps() - m.argument()) m.product(k);
    });
  }
};

}  // namespace metafast
