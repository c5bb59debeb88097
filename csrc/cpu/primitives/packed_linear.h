// y = x W + b where T is a pack of tasks: both terms of a tangent in one product; W read in any order; ReLUs between linear
// layers done where what they change is made; and the step of gradient descent taken where the gradient is made
// (Frame::descent), so that W's gradient is never written.
#pragma once

#include "cpu/kernels/pack_gemm.h"
#include "cpu/primitives/linear.h"
#include "program/primitives.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct PackedLinear {
  static void forward(const Frame<T>& f, const Node& node) {
    const T* bias = f.parameter(node.parameter[1]);
    PackProduct<T> p = outputs(f, node, bias, f.activation_out(node.output));
    p.clip = node.relu_follows;
    p.add(f.activation(node.input[0]), f.parameter(node.parameter[0]));
    multiply_packs(p);
  }

  static void backward(const Frame<T>& f, const Node& node) {
    const T* dy = f.cotangent(node.output);
    if (f.makes_gradient(node, 0)) {
      PackProduct<T> p = weight_gradient(f, node, f.parameter_gradient(node.parameter[0]));
      p.add(f.activation(node.input[0]), dy);
      multiply_packs(p);
    }
    if (f.makes_gradient(node, 1)) bias_gradient(f, node, dy, f.parameter_gradient(node.parameter[1]));
    if (!wanted(node.input_mode[0]) || f.cotangent_unread(node.input[0])) return;
    PackProduct<T> p = input_gradient(f, node, f.cotangent(node.input[0]));
    p.add(dy, f.parameter(node.parameter[0]));
    multiply_packs(p);
  }

  static void tangent_forward(const Frame<T>& f, const Node& node) {
    T* y_dot = f.activation_dot(node.output);
    if (!y_dot) return;
    PackProduct<T> p = outputs(f, node, f.parameter_dot(node.parameter[1]), y_dot);
    if (node.relu_follows) p.gate = f.activation(node.output);
    p.add(f.activation_dot(node.input[0]), f.parameter(node.parameter[0]));
    p.add(f.activation(node.input[0]), f.parameter_dot(node.parameter[0]));
    multiply_packs(p);
  }

  static void tangent_backward(const Frame<T>& f, const Node& node) {
    const T *dy = f.cotangent(node.output), *dy_dot = f.cotangent_dot(node.output);
    if (wanted(node.input_mode[0])) {  // before the step is taken, which may move the tangent of W
      PackProduct<T> p = input_gradient(f, node, f.cotangent_dot(node.input[0]));
      p.add(dy_dot, f.parameter(node.parameter[0]));
      p.add(dy, f.parameter_dot(node.parameter[0]));
      multiply_packs(p);
    }
    if (wanted(node.parameter_mode[0])) {
      PackProduct<T> p = weight_gradient(f, node, f.parameter_gradient_dot(node.parameter[0]));
      p.add(f.activation(node.input[0]), dy_dot);
      p.add(f.activation_dot(node.input[0]), dy);
      multiply_packs(p);
    }
    if (wanted(node.parameter_mode[1])) bias_gradient(f, node, dy_dot, f.parameter_gradient_dot(node.parameter[1]));
  }

 private:
  static Start begin_with(GradientMode mode) {
    return mode == GradientMode::kAccumulate ? Start::kContinue : Start::kZero;
  }

  // The three products, as yet without terms.
  static PackProduct<T> outputs(const Frame<T>& f, const Node& node, const T* bias, T* y) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const Start start = bias ? Start::kBias : Start::kZero;
    PackProduct<T> p{f.rows(node.output), out.ld, in.channels, in.ld, 1, out.ld, 1, y, out.ld, start, bias};
    p.inner = node.op == Op::kOneOutputLinear;
    return p;
  }

  static PackProduct<T> weight_gradient(const Frame<T>& f, const Node& node, T* dw) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const Start start = begin_with(node.parameter_mode[0]);
    PackProduct<T> p{in.channels, out.ld, f.rows(node.output), 1, in.ld, out.ld, 1, dw, out.ld, start};
    if (f.takes_step(node.parameter[0])) {
      const int64_t at = f.parameter_plan(node.parameter[0]).offset;
      p.c = f.fused.to + at, p.from = f.fused.from + at;
      p.rate = T(f.fused.rates[node.parameter[0]]);
    }
    return p;
  }

  static PackProduct<T> input_gradient(const Frame<T>& f, const Node& node, T* dx) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const Start start = begin_with(node.input_mode[0]);
    PackProduct<T> p{
        f.rows(node.output), in.ld_cotangent, out.channels, out.ld, 1, 1, out.ld, dx, in.ld_cotangent, start};
    if (node.relu_precedes) p.gate = f.activation(node.input[0]);
    return p;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
