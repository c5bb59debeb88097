// The four passes of y = x * W + b for any product * that is linear in x and in W. A primitive supplies
//   product(f, node, x, W, y, start, bias)    weight_gradient(f, node, x, dy, dW, start)
//   transpose_weight(f, node, W, room)        input_gradient(f, node, dy, transposed, dx, start)
// where transpose_weight says where W stands in the order that input_gradient wants, having put it into room if need be;
// and the tangents follow: each is the same function called twice, (x * W)' = x' * W + x * W'.
#pragma once

#include "cpu/frame.h"

namespace metafast {
namespace METAFAST_ISA {

// A bias in front of BatchNorm on batch statistics moves the mean and nothing else: its gradient is the zero to which
// a sum over all positions would round. Multiplied by data, because NaN stays NaN.
template <class T>
static void bias_gradient(const Frame<T>& f, const Node& node, const T* dy, T* db) {
  const int64_t ld = f.value(node.output).ld;
  if (node.bias_cancels)
    for (int64_t c = 0; c < ld; ++c) put(db + c, T(0) * dy[c], node.parameter_mode[1]);
  else
    column_sums(dy, ld, f.rows(node.output), ld, db, node.parameter_mode[1] == GradientMode::kAccumulate);
}

template <class T, class Primitive>
struct Bilinear {
  // One sum after the other, where Start::kAccumulate would fold the second into the first.
  static Start in_line(Start start) { return start == Start::kAccumulate ? Start::kContinue : start; }

  static T* room(const Frame<T>& f, const Node& node) {
    return (node.recomputes_transpose ? f.transient : f.tape) + node.saved;
  }

  // Where backward has left W transposed, if it has.
  static const T* transposed(const Frame<T>& f, const Node& node) {
    const bool recompute = node.recomputes_transpose || f.cotangent_unread(node.input[0]);
    return recompute ? Primitive::transpose_weight(f, node, f.parameter(node.parameter[0]), room(f, node))
                     : room(f, node);
  }

  static const T* transposed_dot(const Frame<T>& f, const Node& node) {
    return Primitive::transpose_weight(f, node, f.parameter_dot(node.parameter[0]), f.tangent_tape + node.saved_dot);
  }

  static void forward(const Frame<T>& f, const Node& node) {
    const T* bias = f.parameter(node.parameter[1]);
    Primitive::product(f, node, f.activation(node.input[0]), f.parameter(node.parameter[0]),
                       f.activation_out(node.output), bias ? Start::kBias : Start::kZero, bias);
  }

  static void backward(const Frame<T>& f, const Node& node) {
    const T* dy = f.cotangent(node.output);
    if (f.makes_gradient(node, 0))
      Primitive::weight_gradient(f, node, f.activation(node.input[0]), dy, f.parameter_gradient(node.parameter[0]),
                                 begin_with(node.parameter_mode[0]));
    if (f.makes_gradient(node, 1)) bias_gradient(f, node, dy, f.parameter_gradient(node.parameter[1]));
    if (wanted(node.input_mode[0]) && !f.cotangent_unread(node.input[0])) {
      const T* w = f.parameter(node.parameter[0]);
      const T* transposed = Primitive::transpose_weight(f, node, w, room(f, node));
      Primitive::input_gradient(f, node, dy, transposed, f.cotangent(node.input[0]), begin_with(node.input_mode[0]));
    }
  }

  static void tangent_forward(const Frame<T>& f, const Node& node) {
    const T* x_dot = f.activation_dot(node.input[0]);
    const T* w_dot = f.parameter_dot(node.parameter[0]);
    const T* bias_dot = f.parameter_dot(node.parameter[1]);
    T* y_dot = f.activation_dot(node.output);
    if (!y_dot) return;
    Start start = bias_dot ? Start::kBias : Start::kZero;
    if (x_dot) {
      Primitive::product(f, node, x_dot, f.parameter(node.parameter[0]), y_dot, start, bias_dot);
      start = Start::kAccumulate;
    }
    if (w_dot) {
      Primitive::product(f, node, f.activation(node.input[0]), w_dot, y_dot, start, bias_dot);
      start = Start::kAccumulate;
    }
    if (start != Start::kAccumulate) {  // only the bias moves: a product of depth zero
      const int64_t ld = f.value(node.output).ld;
      multiply<T>({y_dot, nullptr, nullptr, 0, 0}, y_dot, ld, y_dot, ld, f.rows(node.output), ld, 0, start, bias_dot);
    }
  }

  static void tangent_backward(const Frame<T>& f, const Node& node) {
    const T* x_dot = f.activation_dot(node.input[0]);
    const T* dy = f.cotangent(node.output);
    const T* dy_dot = f.cotangent_dot(node.output);
    if (wanted(node.parameter_mode[0])) {
      T* dw_dot = f.parameter_gradient_dot(node.parameter[0]);
      Primitive::weight_gradient(f, node, f.activation(node.input[0]), dy_dot, dw_dot,
                                 begin_with(node.parameter_mode[0]));
      if (x_dot) Primitive::weight_gradient(f, node, x_dot, dy, dw_dot, Start::kAccumulate);
    }
    if (wanted(node.parameter_mode[1])) bias_gradient(f, node, dy_dot, f.parameter_gradient_dot(node.parameter[1]));
    if (wanted(node.input_mode[0])) {
      T* dx_dot = f.cotangent_dot(node.input[0]);
      Primitive::input_gradient(f, node, dy_dot, Primitive::transposed(f, node), dx_dot,
                                begin_with(node.input_mode[0]));
      if (f.parameter_dot(node.parameter[0]))
        Primitive::input_gradient(f, node, dy, Primitive::transposed_dot(f, node), dx_dot, Start::kAccumulate);
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
