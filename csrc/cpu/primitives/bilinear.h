// The four passes of y = x * W + b for any product * that is linear in x and in W. A primitive supplies
//   product(f, s, x, W, y, start, bias)    weight_gradient(f, s, x, dy, dW, start)
//   turn(f, s, W, room)                    input_gradient(f, s, dy, turned, dx, start)
// where turn says where W stands in the order that input_gradient wants, having put it into room if need be;
// and the tangents follow: each is the same function called twice, (x * W)' = x' * W + x * W'.
#pragma once

#include "cpu/frame.h"

namespace metafast {
namespace METAFAST_ISA {

// A bias in front of BatchNorm on batch statistics moves the mean and nothing else: its gradient is the zero to which
// a sum over all positions would round. Multiplied by data, because NaN stays NaN.
template <class T>
static void bias_gradient(const Frame<T>& f, const Step& s, const T* dy, T* db) {
  const int64_t ld = f.value(s.output).ld;
  if (s.bias_cancels)
    for (int64_t c = 0; c < ld; ++c) put(db + c, T(0) * dy[c], s.parameter_mode[1]);
  else
    column_sums(dy, ld, f.rows(s.output), ld, db, s.parameter_mode[1] == GradientMode::kAccumulate);
}

template <class T, class Primitive>
struct Bilinear {
  // One sum after the other, where Start::kAccumulate would fold the second into the first.
  static Start in_line(Start start) { return start == Start::kAccumulate ? Start::kContinue : start; }

  static T* room(const Frame<T>& f, const Step& s) { return (s.turns_again ? f.passing : f.tape) + s.saved; }

  // Where backward has left W turned, if it has.
  static const T* turned(const Frame<T>& f, const Step& s) {
    const bool again = s.turns_again || f.cotangent_unread(s.input[0]);
    return again ? Primitive::turn(f, s, f.parameter(s.parameter[0]), room(f, s)) : room(f, s);
  }

  static const T* turned_dot(const Frame<T>& f, const Step& s) {
    return Primitive::turn(f, s, f.parameter_dot(s.parameter[0]), f.tangent_tape + s.saved_dot);
  }

  static void forward(const Frame<T>& f, const Step& s) {
    const T* bias = f.parameter(s.parameter[1]);
    Primitive::product(f, s, f.activation(s.input[0]), f.parameter(s.parameter[0]), f.activation_out(s.output),
                       bias ? Start::kBias : Start::kZero, bias);
  }

  static void backward(const Frame<T>& f, const Step& s) {
    const T* dy = f.cotangent(s.output);
    if (f.gradient && wanted(s.parameter_mode[0]))
      Primitive::weight_gradient(f, s, f.activation(s.input[0]), dy, f.parameter_gradient(s.parameter[0]),
                                 begin_with(s.parameter_mode[0]));
    if (f.gradient && wanted(s.parameter_mode[1])) bias_gradient(f, s, dy, f.parameter_gradient(s.parameter[1]));
    if (wanted(s.input_mode[0]) && !f.cotangent_unread(s.input[0])) {
      const T* w = f.parameter(s.parameter[0]);
      const T* turned = Primitive::turn(f, s, w, room(f, s));
      Primitive::input_gradient(f, s, dy, turned, f.cotangent(s.input[0]), begin_with(s.input_mode[0]));
    }
  }

  static void tangent_forward(const Frame<T>& f, const Step& s) {
    const T* x_dot = f.activation_dot(s.input[0]);
    const T* w_dot = f.parameter_dot(s.parameter[0]);
    const T* bias_dot = f.parameter_dot(s.parameter[1]);
    T* y_dot = f.activation_dot(s.output);
    if (!y_dot) return;
    Start start = bias_dot ? Start::kBias : Start::kZero;
    if (x_dot) {
      Primitive::product(f, s, x_dot, f.parameter(s.parameter[0]), y_dot, start, bias_dot);
      start = Start::kAccumulate;
    }
    if (w_dot) {
      Primitive::product(f, s, f.activation(s.input[0]), w_dot, y_dot, start, bias_dot);
      start = Start::kAccumulate;
    }
    if (start != Start::kAccumulate) {  // only the bias moves: a product of depth zero
      const int64_t ld = f.value(s.output).ld;
      multiply<T>({y_dot, nullptr, nullptr, 0, 0}, y_dot, ld, y_dot, ld, f.rows(s.output), ld, 0, start, bias_dot);
    }
  }

  static void tangent_backward(const Frame<T>& f, const Step& s) {
    const T* x_dot = f.activation_dot(s.input[0]);
    const T* dy = f.cotangent(s.output);
    const T* dy_dot = f.cotangent_dot(s.output);
    if (wanted(s.parameter_mode[0])) {
      T* dw_dot = f.parameter_gradient_dot(s.parameter[0]);
      Primitive::weight_gradient(f, s, f.activation(s.input[0]), dy_dot, dw_dot, begin_with(s.parameter_mode[0]));
      if (x_dot) Primitive::weight_gradient(f, s, x_dot, dy, dw_dot, Start::kAccumulate);
    }
    if (wanted(s.parameter_mode[1])) bias_gradient(f, s, dy_dot, f.parameter_gradient_dot(s.parameter[1]));
    if (wanted(s.input_mode[0])) {
      T* dx_dot = f.cotangent_dot(s.input[0]);
      Primitive::input_gradient(f, s, dy_dot, Primitive::turned(f, s), dx_dot, begin_with(s.input_mode[0]));
      if (f.parameter_dot(s.parameter[0]))
        Primitive::input_gradient(f, s, dy, Primitive::turned_dot(f, s), dx_dot, Start::kAccumulate);
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
