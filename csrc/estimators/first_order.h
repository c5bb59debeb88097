// Takes every inner gradient for a constant (Finn et al. 2017, section 5.2).
#pragma once

#include "estimators/unrolled.h"

namespace metafast {

struct FirstOrder {
  static constexpr bool kSecondOrder = false;
  static constexpr int32_t reverse_steps(int32_t steps, int32_t) { return steps; }
  template <class M>
  static void stage(M& m, int32_t i) {
    unrolled(m, i, [&](int32_t k) { m.replay(k), m.step_adjoint(k); });
  }
};

}  // namespace metafast
