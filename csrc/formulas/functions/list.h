// The list of pointwise functions. Each states its value and its slope once; the slope is templated on the scalar and may
// use the output, so that the tangent passes evaluate no exponential that the forward pass already has. At a kink the slope
// is torch's: relu'(0) = 0.
//
// To add one: its header, and a line here. program/primitives.h makes primitives of them and says what the traits mean.
#pragma once

#include <limits>

#include "formulas/functions/abs.h"
#include "formulas/functions/affine.h"
#include "formulas/functions/celu.h"
#include "formulas/functions/clamp.h"
#include "formulas/functions/cos.h"
#include "formulas/functions/detach.h"
#include "formulas/functions/elu.h"
#include "formulas/functions/exp.h"
#include "formulas/functions/expm1.h"
#include "formulas/functions/gelu.h"
#include "formulas/functions/gelu_tanh.h"
#include "formulas/functions/hardswish.h"
#include "formulas/functions/hardtanh.h"
#include "formulas/functions/leaky_relu.h"
#include "formulas/functions/log.h"
#include "formulas/functions/log1p.h"
#include "formulas/functions/log_sigmoid.h"
#include "formulas/functions/mish.h"
#include "formulas/functions/pow.h"
#include "formulas/functions/reciprocal.h"
#include "formulas/functions/relu.h"
#include "formulas/functions/rsqrt.h"
#include "formulas/functions/selu.h"
#include "formulas/functions/sigmoid.h"
#include "formulas/functions/silu.h"
#include "formulas/functions/sin.h"
#include "formulas/functions/softplus.h"
#include "formulas/functions/softsign.h"
#include "formulas/functions/sqrt.h"
#include "formulas/functions/square.h"
#include "formulas/functions/tanh.h"
#include "formulas/functions/threshold.h"

namespace metafast {

constexpr double kNoBound = std::numeric_limits<double>::infinity();  // where a bound is absent

}  // namespace metafast

// X(member of Op and struct, name, traits, {attribute, default}...)
#define METAFAST_POINTWISE(X)                                                          \
  X(Relu, "relu", kSlopeFromOutput | kPiecewiseLinear)                                 \
  X(LeakyRelu, "leaky_relu", kSlopeFromRising | kPiecewiseLinear, {"slope", 0.01})     \
  X(Elu, "elu", kSlopeFromRising, {"alpha", 1})                                        \
  X(Silu, "silu", 0)                                                                   \
  X(Gelu, "gelu", 0)                                                                   \
  X(GeluTanh, "gelu_tanh", 0)                                                          \
  X(Tanh, "tanh", kSlopeFromOutput)                                                    \
  X(Softsign, "softsign", 0)                                                           \
  X(Sigmoid, "sigmoid", kSlopeFromOutput)                                              \
  X(Softplus, "softplus", 0, {"beta", 1}, {"threshold", 20})                           \
  X(Abs, "abs", kPiecewiseLinear)                                                      \
  X(Affine, "affine", kSlopeFromOutput | kPiecewiseLinear, {"scale", 1}, {"shift", 0}) \
  X(Celu, "celu", kSlopeFromRising, {"alpha", 1})                                      \
  X(Clamp, "clamp", kPiecewiseLinear, {"low", -kNoBound}, {"high", kNoBound})          \
  X(Cos, "cos", 0)                                                                     \
  X(Detach, "detach", kSlopeFromOutput | kPiecewiseLinear)                             \
  X(Exp, "exp", kSlopeFromOutput | kUnbounded)                                         \
  X(Expm1, "expm1", kSlopeFromOutput | kUnbounded)                                     \
  X(Hardswish, "hardswish", 0)                                                         \
  X(Hardtanh, "hardtanh", kPiecewiseLinear, {"low", -1}, {"high", 1})                  \
  X(Log, "log", kUnbounded)                                                            \
  X(Log1p, "log1p", kUnbounded)                                                        \
  X(LogSigmoid, "log_sigmoid", 0)                                                      \
  X(Mish, "mish", 0)                                                                   \
  X(Pow, "pow", kUnbounded, {"exponent", 1})                                           \
  X(Reciprocal, "reciprocal", kSlopeFromOutput | kUnbounded)                           \
  X(Rsqrt, "rsqrt", kSlopeFromOutput | kUnbounded)                                     \
  X(Selu, "selu", kSlopeFromOutput)                                                    \
  X(Sin, "sin", 0)                                                                     \
  X(Sqrt, "sqrt", kSlopeFromOutput | kUnbounded)                                       \
  X(Squared, "square", kUnbounded)                                                     \
  X(Threshold, "threshold", kPiecewiseLinear, {"limit", 0}, {"otherwise", 0})
