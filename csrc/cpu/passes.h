// The four passes over all steps of a Program. To add a primitive: its header here, and one line in METAFAST_PRIMITIVES.
#pragma once

#include "../primitives/activation.h"
#include "../primitives/batch_norm.h"
#include "../primitives/batch_norm_relu_pool.h"
#include "../primitives/conv2d.h"
#include "../primitives/first_linear.h"
#include "../primitives/linear.h"
#include "../primitives/losses.h"
#include "../primitives/pooling.h"
#include "../primitives/shape_and_sum.h"
#include "../primitives/winograd_conv2d.h"

#define METAFAST_PRIMITIVES(X)                \
  X(kLinear, Linear<T>)                       \
  X(kConv2d, Conv2d<T>)                       \
  X(kBatchNorm, BatchNorm<T>)                 \
  X(kRelu, Activation<T, Relu>)               \
  X(kLeakyRelu, Activation<T, LeakyRelu>)     \
  X(kElu, Activation<T, Elu>)                 \
  X(kSilu, Activation<T, Silu>)               \
  X(kGelu, Activation<T, Gelu>)               \
  X(kGeluTanh, Activation<T, GeluTanh>)       \
  X(kTanh, Activation<T, Tanh>)               \
  X(kSigmoid, Activation<T, Sigmoid>)         \
  X(kSoftplus, Activation<T, Softplus>)       \
  X(kMaxPool2d, MaxPool2d<T>)                 \
  X(kAvgPool2d, AvgPool2d<T>)                 \
  X(kFlatten, Flatten<T>)                     \
  X(kAdd, Add<T>)                             \
  X(kFirstLinear, FirstLinear<T>)             \
  X(kBatchNormReluPool, BatchNormReluPool<T>) \
  X(kWinogradConv2d, WinogradConv2d<T>)

namespace metafast {
namespace METAFAST_ISA {

template <class T>
static void forward(const Frame<T>& f) {
  for (int i = 0; i < f.plan->step_count; ++i) {
    const Step& s = f.plan->steps[i];
    switch (s.op) {
#define METAFAST_PASS(OP, ...) \
  case Op::OP: __VA_ARGS__::forward(f, s); break;
      METAFAST_PRIMITIVES(METAFAST_PASS)
#undef METAFAST_PASS
    }
  }
}

template <class T>
static void tangent_forward(const Frame<T>& f) {
  for (int i = 0; i < f.plan->step_count; ++i) {
    const Step& s = f.plan->steps[i];
    if (!f.value(s.output).has_tangent) continue;
    switch (s.op) {
#define METAFAST_PASS(OP, ...) \
  case Op::OP: __VA_ARGS__::tangent_forward(f, s); break;
      METAFAST_PRIMITIVES(METAFAST_PASS)
#undef METAFAST_PASS
    }
  }
}

template <class T>
static void backward(const Frame<T>& f) {
  if (f.gradient && f.plan->gradient_has_gaps) memset(f.gradient, 0, size_t(f.plan->gradient_size) * sizeof(T));
  for (int i = f.plan->step_count - 1; i >= 0; --i) {
    const Step& s = f.plan->steps[i];
    if (!f.value(s.output).has_cotangent) continue;
    switch (s.op) {
#define METAFAST_PASS(OP, ...) \
  case Op::OP: __VA_ARGS__::backward(f, s); break;
      METAFAST_PRIMITIVES(METAFAST_PASS)
#undef METAFAST_PASS
    }
  }
}

template <class T>
static void tangent_backward(const Frame<T>& f) {
  if (f.plan->gradient_has_gaps) memset(f.gradient_dot, 0, size_t(f.plan->gradient_size) * sizeof(T));
  for (int i = f.plan->step_count - 1; i >= 0; --i) {
    const Step& s = f.plan->steps[i];
    if (!f.value(s.output).has_cotangent) continue;
    switch (s.op) {
#define METAFAST_PASS(OP, ...) \
  case Op::OP: __VA_ARGS__::tangent_backward(f, s); break;
      METAFAST_PRIMITIVES(METAFAST_PASS)
#undef METAFAST_PASS
    }
  }
}

// Calls body(passes of the plan's loss).
template <class T, class Body>
static void with_loss(const Frame<T>& f, const Targets<T>& targets, Body body) {
  switch (f.plan->loss.kind) {
#define METAFAST_LOSS(KIND, ...) \
  case LossKind::KIND: body(LossPasses<T, __VA_ARGS__>(f, targets)); break;
    METAFAST_LOSSES(METAFAST_LOSS)
#undef METAFAST_LOSS
    case LossKind::kNone: break;
  }
}

template <class T>
static T loss_forward(const Frame<T>& f, const Targets<T>& targets) {
  T loss = T(0);
  with_loss(f, targets, [&](const auto& passes) { loss = passes.forward(); });
  return loss;
}

// Cotangents of the outputs, targets and weights for a cotangent `seed` of the loss, whose value is `loss`.
template <class T>
static void loss_backward(const Frame<T>& f, const Targets<T>& targets, const TargetGradients<T>& out, T seed, T loss) {
  with_loss(f, targets,
            [&](const auto& passes) { passes.template reverse<T>(seed, f.cotangent(f.plan->output), out, loss); });
}

// The tangents of loss_backward's results, for seed 1.
template <class T>
static void loss_tangent_backward(const Frame<T>& f, const Targets<T>& targets, const TargetGradients<T>& out, T loss) {
  with_loss(f, targets, [&](const auto& passes) {
    const Dual<T> mean(loss, out.dw ? passes.mean_tangent() : T(0));
    passes.template reverse<Dual<T>>(T(1), f.cotangent_dot(f.plan->output), out, mean);
  });
}

}  // namespace METAFAST_ISA
}  // namespace metafast
