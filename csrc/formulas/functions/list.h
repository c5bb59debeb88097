// The list of pointwise functions. Each states its value and its slope once; the slope is templated on the scalar and may
// use the output, so that the tangent passes evaluate no exponential that the forward pass already has. At a kink the slope
// is torch's: relu'(0) = 0.
//
// To add one: its header, and a line here. program/primitives.h makes primitives of them and says what the traits mean.
#pragma once

#include "formulas/functions/elu.h"
#include "formulas/functions/gelu.h"
#include "formulas/functions/gelu_tanh.h"
#include "formulas/functions/leaky_relu.h"
#include "formulas/functions/relu.h"
#include "formulas/functions/sigmoid.h"
#include "formulas/functions/silu.h"
#include "formulas/functions/softplus.h"
#include "formulas/functions/softsign.h"
#include "formulas/functions/tanh.h"

// X(member of Op and struct, name, traits, {attribute, default}...)
#define METAFAST_POINTWISE(X)                                                      \
  X(Relu, "relu", kSlopeFromOutput | kPiecewiseLinear)                             \
  X(LeakyRelu, "leaky_relu", kSlopeFromRising | kPiecewiseLinear, {"slope", 0.01}) \
  X(Elu, "elu", kSlopeFromRising, {"alpha", 1})                                    \
  X(Silu, "silu", 0)                                                               \
  X(Gelu, "gelu", 0)                                                               \
  X(GeluTanh, "gelu_tanh", 0)                                                      \
  X(Tanh, "tanh", kSlopeFromOutput)                                                \
  X(Softsign, "softsign", 0)                                                       \
  X(Sigmoid, "sigmoid", kSlopeFromOutput)                                          \
  X(Softplus, "softplus", 0, {"beta", 1}, {"threshold", 20})
