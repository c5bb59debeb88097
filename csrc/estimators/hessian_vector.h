// Instead of an unrolled loop: H v on the support set.
#pragma once

#include "estimators/unrolled.h"

namespace metafast {

struct HessianVector {
  static constexpr bool kSecondOrder = true;
  static constexpr int32_t reverse_steps(int32_t, int32_t) { return 0; }
  template <class M>
  static void stage(M& m, int32_t) {
    m.hessian_vector();
  }
};

}  // namespace metafast
