// What a loss phase is to do: the argument of its Instruction.
#pragma once

#include <stdint.h>

namespace metafast {

enum LossFlags : int32_t {
  kLossBackward = 1,  // write the cotangent of the outputs
  kLossData = 2,      // and the gradients of targets and weights, as far as they are wanted
  kLossSeeded = 4,    // for the cotangent of the call instead of 1
  kLossReported = 8,  // write the value where the user wants it
};

}  // namespace metafast
