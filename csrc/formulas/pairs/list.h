// The list of functions of two elements. Each states its value and its two partial derivatives, for any scalar, so that the
// tangents follow. Their operands broadcast as torch's do (program/nodes/pair.h).
//
// To add one: its header, and a line here. program/primitives.h makes primitives of them and says what the traits mean.
#pragma once

#include "formulas/pairs/add.h"
#include "formulas/pairs/at_least.h"
#include "formulas/pairs/binary_cross_entropy.h"
#include "formulas/pairs/divide.h"
#include "formulas/pairs/hide.h"
#include "formulas/pairs/keep.h"
#include "formulas/pairs/maximum.h"
#include "formulas/pairs/minimum.h"
#include "formulas/pairs/multiply.h"
#include "formulas/pairs/subtract.h"

// X(member of Op and struct, name, traits)
#define METAFAST_PAIRS(X)                          \
  X(Add, "add", kLinear | kTakesPads)              \
  X(AtLeast, "at_least", kLinear | kTakesPads)     \
  X(BinaryCrossEntropy, "binary_cross_entropy", 0) \
  X(Subtract, "subtract", kLinear | kTakesPads)    \
  X(Multiply, "multiply", kTakesPads)              \
  X(Divide, "divide", 0)                           \
  X(Hide, "hide", kLinear)                         \
  X(Keep, "keep", kLinear | kTakesPads)            \
  X(Maximum, "maximum", kLinear | kTakesPads)      \
  X(Minimum, "minimum", kLinear | kTakesPads)
