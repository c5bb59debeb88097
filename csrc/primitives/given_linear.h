// y = x W + b at the input, in Hessian-vector products of each task's own: weight, vector and result are used once, so
// they are read and written where the user has them, [outputs][inputs], and never turned.
#pragma once

#include "../cpu/dot.h"
#include "bilinear.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct GivenLinear {
  // Where `open`, if not null, is zero, nobody reads y.
  static void product(const Frame<T>& f, const Step& s, const T* w, const T* bias, T* y, const T* open,
                      const T* later) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    const int64_t rows = f.rows(s.output);
    const T* x = f.activation(s.input[0]);
    const bool choose =
        open && chosen_rows_pay(count_nonzero(open, out.ld, rows, out.channels), rows, out.channels, in.channels);
    f.share(rows, in.channels * out.channels, [&](int64_t begin, int64_t end, T*) {
      if (choose)
        return multiply_chosen_rows<T>(open + begin * out.ld, out.ld, x + begin * in.ld, in.ld, w, in.channels,
                                       y + begin * out.ld, out.ld, end - begin, out.channels, in.channels, bias);
      multiply_rows<T>(x + begin * in.ld, in.ld, w, in.channels, y + begin * out.ld, out.ld, end - begin, out.channels,
                       in.channels, bias ? Start::kBias : Start::kZero, bias, later);
      for (int64_t r = begin; r < end; ++r) zero_pads(y + r * out.ld, out.channels, out.ld);
    });
  }

  static void forward(const Frame<T>& f, const Step& s) {
    product(f, s, f.given, f.parameter(s.parameter[1]), f.activation_out(s.output), nullptr, f.given_dot);
  }
  static void backward(const Frame<T>&, const Step&) {}  // only the product with the Hessian is wanted
  static void tangent_forward(const Frame<T>& f, const Step& s) {
    const T* open = s.shut_by < 0 ? nullptr : f.activation(s.shut_by);
    product(f, s, f.given_dot, f.parameter_dot(s.parameter[1]), f.activation_dot(s.output), open, nullptr);
  }
  static void tangent_backward(const Frame<T>& f, const Step& s) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    const T* dy_dot = f.cotangent_dot(s.output);
    multiply<T>(f.share, {dy_dot, nullptr, nullptr, 1, out.ld, s.shut_by >= 0}, f.activation(s.input[0]), in.ld,
                f.given_gradient_dot, in.channels, out.channels, in.channels, f.rows(s.output), Start::kZero);
    if (wanted(s.parameter_mode[1])) bias_gradient(f, s, dy_dot, f.parameter_gradient_dot(s.parameter[1]));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
