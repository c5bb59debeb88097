// Goes back through the last `argument` steps alone, and hands lambda on to the initial parameters (Shaban et al. 2019;
// docs/maths.md, equation 12).
#pragma once

#include "estimators/exact.h"

namespace metafast {

struct Truncated : Exact {
  static constexpr int32_t reverse_steps(int32_t steps, int32_t argument) {
    return argument < steps ? argument : steps;
  }
};

}  // namespace metafast
