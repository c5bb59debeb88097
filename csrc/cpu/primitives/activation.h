// The four passes of a pointwise function.
#pragma once

#include "cpu/frame.h"
#include "program/primitives.h"

namespace metafast {
namespace METAFAST_ISA {

// The loops over elements. They do not ask how many tasks the elements belong to: tasks by themselves and packs call the
// same code, which is compiled once. Arrays are distinct or the same, never shifted: hence ivdep and no __restrict.
template <class E, class Function>
struct Pointwise {
  METAFAST_ONE_LOOP static void forward(Function function, int64_t n, const E* x, E* y) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) y[i] = function.value(x[i]);
  }

  // out (+)= slope * in: the cotangent on its way back, or the tangent on its way forward.
  METAFAST_ONE_LOOP static void scale(Function function, int64_t n, const E* x, const E* y, const E* in, E* out,
                                      bool keep) {
    if (keep)
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) out[i] += function.slope(x[i], y[i]) * in[i];
    else
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) out[i] = function.slope(x[i], y[i]) * in[i];
  }

  // The tangent of scale(in = dy).
  METAFAST_ONE_LOOP static void scale_tangent(Function function, int64_t n, const E* x, const E* y, const E* x_dot,
                                              const E* y_dot, const E* dy, const E* dy_dot, E* dx_dot, bool keep) {
    const auto tangent = [=](int64_t i) {
      const Dual<E> slope = function.slope(Dual<E>(x[i], x_dot[i]), Dual<E>(y[i], y_dot[i]));
      return slope.v * dy_dot[i] + slope.d * dy[i];
    };
    if (keep)
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) dx_dot[i] += tangent(i);
    else
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) dx_dot[i] = tangent(i);
  }
};

template <class Function>
constexpr uint32_t kTraitsOf = 0;
#define METAFAST_TRAITS(NAME, TEXT, TRAITS, ...) \
  template <>                                    \
  constexpr uint32_t kTraitsOf<NAME> = TRAITS;
METAFAST_POINTWISE(METAFAST_TRAITS)
#undef METAFAST_TRAITS

template <class T, class Function>
struct Activation {
  using E = Element<T>;
  using Loops = Pointwise<E, Function>;
  static E* elements(T* p) { return reinterpret_cast<E*>(p); }
  static const E* elements(const T* p) { return reinterpret_cast<const E*>(p); }
  static int64_t count(const Frame<T>& f, const Node& node) {
    return f.rows(node.output) * f.value(node.output).ld * kTasks<T>;
  }
  static const E* x(const Frame<T>& f, const Node& node) { return elements(f.activation(node.input[0])); }
  static const E* y(const Frame<T>& f, const Node& node) { return elements(f.activation(node.output)); }
  static bool keep(const Node& node) { return node.input_mode[0] == GradientMode::kAccumulate; }

  static void forward(const Frame<T>& f, const Node& node) {
    const E* in = x(f, node);
    E* out = elements(f.activation_out(node.output));
    each_part(f, node, [&](int64_t at, int64_t n) {
      Loops::forward(Function(node), n, in + at, out + at);
      clear_pads(f, node, at, n, out);
    });
  }

  static void backward(const Frame<T>& f, const Node& node) {
    if (wanted(node.input_mode[0])) scale(f, node, f.cotangent(node.output), f.cotangent(node.input[0]), keep(node));
  }

  static void tangent_forward(const Frame<T>& f, const Node& node) {
    if (const T* x_dot = f.activation_dot(node.input[0])) scale(f, node, x_dot, f.activation_dot(node.output), false);
  }

  static void tangent_backward(const Frame<T>& f, const Node& node) {
    if (!wanted(node.input_mode[0])) return;
    const E* x_dot = kTraitsOf<Function> & kPiecewiseLinear ? nullptr : elements(f.activation_dot(node.input[0]));
    if (!x_dot) return scale(f, node, f.cotangent_dot(node.output), f.cotangent_dot(node.input[0]), keep(node));
    const E *x0 = x(f, node), *y0 = y(f, node), *y_dot = elements(f.activation_dot(node.output));
    const E *dy = elements(f.cotangent(node.output)), *dy_dot = elements(f.cotangent_dot(node.output));
    E* dx_dot = elements(f.cotangent_dot(node.input[0]));
    each_part(f, node, [&](int64_t at, int64_t n) {
      Loops::scale_tangent(Function(node), n, x0 + at, y0 + at, x_dot + at, y_dot + at, dy + at, dy_dot + at,
                           dx_dot + at, keep(node));
      clear_pads(f, node, at, n, dx_dot);
    });
  }

 private:
  // Zeros in the pads of elements at .. at + n.
  static void clear_pads(const Frame<T>& f, const Node& node, int64_t at, int64_t n, E* out) {
    const int64_t ld = f.value(node.output).ld * kTasks<T>, channels = f.value(node.output).channels * kTasks<T>;
    if (!(kTraitsOf<Function> & kUnbounded) || ld == channels) return;
    for (int64_t row = at / ld * ld; row < at + n; row += ld)
      for (int64_t i = row + channels < at ? at : row + channels; i < row + ld && i < at + n; ++i) out[i] = E(0);
  }
  // Calls body(first element, how many).
  template <class Body>
  static void each_part(const Frame<T>& f, const Node& node, Body body) {
    const int64_t n = count(f, node);
    if constexpr (kIsPack<T>) return body(0, n);
    f.share(n / kLanes<E>, 8 * kLanes<E>,
            [&](int64_t begin, int64_t end, T*) { body(begin * kLanes<E>, (end - begin) * kLanes<E>); });
  }
  static void scale(const Frame<T>& f, const Node& node, const T* in, T* out, bool keep) {
    const E *x0 = x(f, node), *y0 = y(f, node), *from = elements(in);
    E* to = elements(out);
    each_part(f, node, [&](int64_t at, int64_t n) {
      Loops::scale(Function(node), n, x0 + at, y0 + at, from + at, to + at, keep);
      clear_pads(f, node, at, n, to);
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
