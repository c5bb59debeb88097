// The list of primitives: what the nodes of a Program can be, and what each promises. The enum, the names, the dispatch on
// both machines and every question that the planner asks about a kind of node come from here. Pointwise functions have a
// list of their own (formulas/functions/list.h), and so have functions of two elements (formulas/pairs/list.h).
//
// To add one: a line here and the files that CONTRIBUTING.md names. A trait that is not given means no: whoever forgets one
// loses speed, never a right result.
#pragma once

#include <stdint.h>

#include "core/plan.h"
#include "formulas/functions/list.h"
#include "formulas/pairs/list.h"

// X(member of Op and primitive of the CPU, name, inputs (-n: one to n), parameters at most, traits)
#define METAFAST_STRUCTURED(X)                                                                            \
  X(Linear, "linear", 1, 2, kPackable | kBilinear | kReadsUnpadded | kForgetsOutput | kTakesShared)       \
  X(Matmul, "matmul", 2, 0, kForgetsOutput | kTakesShared)                                                \
  X(Conv2d, "conv2d", 1, 2, kBilinear | kReadsUnpadded | kForgetsOutput)                                  \
  X(ConvTranspose2d, "conv_transpose2d", 1, 2, kBilinear | kForgetsOutput)                                \
  X(BatchNorm, "batch_norm", 1, 4, kSubtractsMean | kForgetsOutput)                                       \
  X(Normalise, "normalise", 1, 2, kForgetsOutput)                                                         \
  X(MaxPool2d, "max_pool2d", 1, 0, kForgetsOutput)                                                        \
  X(AvgPool2d, "avg_pool2d", 1, 0, kForgetsOutput)                                                        \
  X(AdaptiveAvgPool2d, "adaptive_avg_pool2d", 1, 0, kForgetsOutput)                                       \
  X(Flatten, "flatten", 1, 0, kForgetsOutput)                                                             \
  X(Dropout, "dropout", 1, 0, kForgetsOutput | kRandom)                                                   \
  X(Softmax, "softmax", 1, 0, kTakesShared)                                                               \
  X(LogSoftmax, "log_softmax", 1, 0, kTakesShared)                                                        \
  X(SparseMap, "sparse_map", -kNodeInputs, 0, kPackable | kReadsUnpadded | kForgetsOutput | kTakesShared) \
  X(ParameterValue, "parameter", 0, 1, kPackable | kForgetsOutput | kTakesShared)                         \
  X(Embedding, "embedding", 1, 1, kReadsUnpadded | kForgetsOutput)

// Other forms of those above, chosen by the planner and unknown to Python. X(member of Op and primitive of the CPU, traits)
#define METAFAST_FORMS(X)                                                                                           \
  X(BatchNormReluPool, kSubtractsMean | kForgetsOutput | kFreesInput) /* of three nodes */                          \
  X(WinogradConv2d, kBilinear | kForgetsOutput)                       /* where it pays */                           \
  X(GroupedConv2d, kBilinear | kReadsUnpadded | kForgetsOutput)       /* in groups, by elements */                  \
  X(GroupedConvTranspose2d, kBilinear | kForgetsOutput)               /* likewise */                                \
  X(OneOutputLinear, kPackable | kBilinear | kForgetsOutput)          /* its weight is one row */                   \
  X(FirstLinear, kBilinear | kForgetsOutput)                          /* on the input, kept as a product with it */ \
  X(UserLinear, kBilinear | kForgetsOutput)       /* on the input, its weight as the user has it */                 \
  X(UserHiddenLinear, kBilinear | kForgetsOutput) /* one behind others, likewise */

namespace metafast {

enum class Op : int32_t {
#define METAFAST_MEMBER(NAME, ...) k##NAME,
  METAFAST_POINTWISE(METAFAST_MEMBER) METAFAST_PAIRS(METAFAST_MEMBER) METAFAST_STRUCTURED(METAFAST_MEMBER)
      METAFAST_FORMS(METAFAST_MEMBER)
#undef METAFAST_MEMBER
};

enum Trait : uint32_t {
  kPointwise = 1 << 0,        // a function of one element
  kPackable = 1 << 1,         // runs on packs of tasks: an element is never read by another task's lane
  kSlopeFromOutput = 1 << 2,  // its slope comes out the same with its output in the place of its input,
  kSlopeFromRising = 1 << 3,  // or does if its first attribute is not negative: it may work in place
  kPiecewiseLinear = 1 << 4,  // its slope is constant between kinks
  kBilinear = 1 << 5,         // a product of its input and its first parameter
  kReadsUnpadded = 1 << 6,    // rows of its input need not be padded
  kForgetsOutput = 1 << 7,    // no later pass of it reads what it wrote, so that others may overwrite that
  kSubtractsMean = 1 << 8,    // with `training`: a constant added to a channel of its input changes nothing
  kLinear = 1 << 9,           // the derivatives of a function of two elements are constant between kinks
  kTakesPads = 1 << 10,       // it is finite on the pads of activations, and zero on those of cotangents
  kTakesShared = 1 << 11,     // its inputs may be values without an axis of examples (Value::shared)
  kUnbounded = 1 << 12,       // may be infinite, or NaN, where its input is finite: its pads are cleared
  kFreesInput = 1 << 13,      // no later pass of it reads its input once the cotangent of that is made
  kRandom = 1 << 14,          // draws random numbers, by its number, the call's seed, the task and the step
};

constexpr uint32_t traits(Op op) {
  switch (op) {
#define METAFAST_CASE(NAME, TEXT, TRAITS, ...) \
  case Op::k##NAME: return kPointwise | kPackable | kTakesShared | (TRAITS);
    METAFAST_POINTWISE(METAFAST_CASE)
#undef METAFAST_CASE
#define METAFAST_CASE(NAME, TEXT, TRAITS) \
  case Op::k##NAME: return kPackable | kForgetsOutput | kTakesShared | (TRAITS);
    METAFAST_PAIRS(METAFAST_CASE)
#undef METAFAST_CASE
#define METAFAST_CASE(NAME, TEXT, INPUTS, PARAMETERS, TRAITS) \
  case Op::k##NAME: return TRAITS;
    METAFAST_STRUCTURED(METAFAST_CASE)
#undef METAFAST_CASE
#define METAFAST_CASE(NAME, TRAITS) \
  case Op::k##NAME: return TRAITS;
    METAFAST_FORMS(METAFAST_CASE)
#undef METAFAST_CASE
  }
  return 0;
}

constexpr bool has(Op op, Trait trait) { return (traits(op) & trait) != 0; }

}  // namespace metafast
