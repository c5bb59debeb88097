// y = x W + b in Hessian-vector products of each task's own: weight, vector and result stand with the user as
// [outputs][inputs], and are read and written there where that order will do.
#pragma once

#include "cpu/kernels/dot.h"
#include "cpu/kernels/dual_product.h"
#include "cpu/primitives/linear.h"

namespace metafast {
namespace METAFAST_ISA {

// At the input: all three are used once, and never transposed.
template <class T>
struct UserLinear {
  // Whether all of x are numbers, as far as is known.
  static T* is_finite(const Frame<T>& f, const Node& node) { return f.tape + node.saved; }

  // Where `open`, if not null, is zero, nobody reads y.
  static void product(const Frame<T>& f, const Node& node, const T* w, const T* bias, T* y, const T* open,
                      const T* later) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const int64_t rows = f.rows(node.output);
    const T* x = f.activation(node.input[0]);
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

  static void forward(const Frame<T>& f, const Node& node) {
    const int p = node.parameter[0];
    T* y = f.activation_out(node.output);
    product(f, node, f.user(p), f.parameter(node.parameter[1]), y, nullptr, f.user_dot(p));
    const int64_t ld = f.value(node.output).ld;
    *is_finite(f, node) =
        T(all_finite(y, ld, f.rows(node.output), ld));  // an x that is none leaves none in its row of y
  }
  static void backward(const Frame<T>&, const Node&) {}  // only the product with the Hessian is wanted
  static void tangent_forward(const Frame<T>& f, const Node& node) {
    const T* open = node.masked_by < 0 ? nullptr : f.activation(node.masked_by);
    product(f, node, f.user_dot(node.parameter[0]), f.parameter_dot(node.parameter[1]), f.activation_dot(node.output),
            open, nullptr);
  }
  static void tangent_backward(const Frame<T>& f, const Node& node) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const T* dy_dot = f.cotangent_dot(node.output);
    const Gather<T> a{dy_dot, nullptr, nullptr, 1, out.ld, node.masked_by >= 0, *is_finite(f, node) != T(0)};
    multiply<T>(f.share, a, f.activation(node.input[0]), in.ld, f.user_gradient_dot(node.parameter[0]), in.channels,
                out.channels, in.channels, f.rows(node.output), Start::kZero);
    if (wanted(node.parameter_mode[1])) bias_gradient(f, node, dy_dot, f.parameter_gradient_dot(node.parameter[1]));
  }
};

// Behind others: W forwards as [inputs][outputs], but the user's order backwards, and for the result.
template <class T>
struct UserHiddenLinear : Bilinear<T, UserHiddenLinear<T>> {
  using Bilinear<T, UserHiddenLinear>::in_line;

  template <class... Arguments>
  static void product(const Arguments&... of_it) {
    Linear<T>::product(of_it...);
  }
  template <class... Arguments>
  static void input_gradient(const Arguments&... of_it) {
    Linear<T>::input_gradient(of_it...);
  }

  // forward() and tangent_forward() at once.
  static void forward_with_tangent(const Frame<T>& f, const Node& node) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const T *x_dot = f.activation_dot(node.input[0]), *w_dot = f.parameter_dot(node.parameter[0]);
    if (!x_dot || !w_dot) {
      UserHiddenLinear::forward(f, node);
      return UserHiddenLinear::tangent_forward(f, node);
    }
    const auto zeros = [&](const T* x) { return Gather<T>{x, nullptr, nullptr, in.ld, 1, node.after_relu}; };
    multiply_dual(f.share, {zeros(f.activation(node.input[0])), zeros(x_dot), f.parameter(node.parameter[0]), w_dot,
                            f.activation_out(node.output), f.activation_dot(node.output), out.ld, f.rows(node.output),
                            out.ld, in.channels, f.parameter(node.parameter[1]), f.parameter_dot(node.parameter[1])});
  }

  static void weight_gradient(const Frame<T>& f, const Node& node, const T* x, const T* dy, T*, Start start) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    multiply<T>(f.share, {dy, nullptr, nullptr, 1, out.ld, node.masked_by >= 0}, x, in.ld,
                f.user_gradient_dot(node.parameter[0]), in.channels, out.channels, in.channels, f.rows(node.output),
                in_line(start));
  }

  static const T* transpose_weight(const Frame<T>& f, const Node& node, const T*, T*) {
    return f.user(node.parameter[0]);
  }
  static const T* transposed(const Frame<T>& f, const Node& node) { return f.user(node.parameter[0]); }
  static const T* transposed_dot(const Frame<T>& f, const Node& node) { return f.user_dot(node.parameter[0]); }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
