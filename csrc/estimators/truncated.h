// Goes back through the last `argument` steps alone, and takes what stands before them for a constant (Shaban et al. 2019).
#pragma once

#include "estimators/exact.h"

namespace metafast {

struct Truncated : Exact {
  static constexpr int32_t swept(int32_t steps, int32_t argument) { return argument < steps ? argument : steps; }
};

}  // namespace metafast
