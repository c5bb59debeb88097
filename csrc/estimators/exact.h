// The exact derivative (docs/maths.md, section 2): K steps, the query, and the K steps backwards.
#pragma once

#include "estimators/unrolled.h"

namespace metafast {

struct Exact {
  static constexpr bool kSecondOrder = true;
  static constexpr int32_t reverse_steps(int32_t steps, int32_t) { return steps; }
  template <class M>
  static void stage(M& m, int32_t i) {
    unrolled(m, i, [&](int32_t k) { m.replay(k), m.step_adjoint(k), m.product(k); });
  }
};

}  // namespace metafast
