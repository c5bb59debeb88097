// Softmax over the channels of each row, and its logarithm. Later passes read the output.
#pragma once

#include <type_traits>

#include "cpu/frame.h"
#include "formulas/softmax.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T, bool kLog>
struct SoftmaxOfRows {
  using Row = SoftmaxRow<kLog>;
  using V = Vector<T>;

  static void forward(const Frame<T>& f, const Node& node) {
    const T* x = f.activation(node.input[0]);
    T* y = f.activation_out(node.output);
    const bool of_nothing = node.attribute[0] != 0;
    each_row(f, node, [=](int64_t i, int64_t channels, int64_t ld, T* room) {
      const T *from = x + i, most = Row::origin(greatest(from, channels), of_nothing);
      for (int64_t c = 0; c < channels; ++c) room[c] = exp(from[c] - most);
      const T sum = sum_range(room, 0, channels);
      T* const to = y + i;
      for (int64_t c = 0; c < channels; ++c) to[c] = Row::value(from[c] - most, sum);
      for (int64_t c = channels; c < ld; ++c) to[c] = T(0);
    });
  }

  static void tangent_forward(const Frame<T>& f, const Node& node) {
    const T *y = f.activation(node.output), *x_dot = f.activation_dot(node.input[0]);
    T* y_dot = f.activation_dot(node.output);
    if (!y_dot) return;
    each_row(f, node, [=](int64_t i, int64_t channels, int64_t ld, T* room) {
      const T *out = y + i, *from = x_dot + i;
      for (int64_t c = 0; c < channels; ++c) room[c] = Row::probability(out[c]) * from[c];
      const T sum = sum_range(room, 0, channels);
      T* const to = y_dot + i;
      for (int64_t c = 0; c < channels; ++c) to[c] = Row::tangent(Row::probability(out[c]), from[c], sum);
      for (int64_t c = channels; c < ld; ++c) to[c] = T(0);
    });
  }

  static void backward(const Frame<T>& f, const Node& node) {
    if (wanted(node.input_mode[0])) pull<T>(f, node, f.cotangent(node.input[0]));
  }
  static void tangent_backward(const Frame<T>& f, const Node& node) {
    if (wanted(node.input_mode[0])) pull<Dual<T>>(f, node, f.cotangent_dot(node.input[0]));
  }

 private:
  // S, and the tangent of what has none.
  template <class S>
  static S number(const T* value, const T* dot, int64_t i) {
    if constexpr (std::is_same<S, T>::value)
      return value[i];
    else
      return S(value[i], dot ? dot[i] : T(0));
  }
  static T made(T x) { return x; }
  static T made(Dual<T> x) { return x.d; }

  template <class S>
  static void pull(const Frame<T>& f, const Node& node, T* dx) {
    constexpr bool tangent = !std::is_same<S, T>::value;
    const T *y = f.activation(node.output), *dy = f.cotangent(node.output);
    const T* y_dot = tangent ? f.activation_dot(node.output) : nullptr;
    const T* dy_dot = tangent ? f.cotangent_dot(node.output) : nullptr;
    const GradientMode mode = node.input_mode[0];
    each_row(f, node, [=](int64_t i, int64_t channels, int64_t ld, T* room) {
      const auto p = [&](int64_t c) { return Row::probability(number<S>(y, y_dot, i + c)); };
      for (int64_t c = 0; c < channels; ++c) {
        const S term = Row::pulled(p(c), number<S>(dy, dy_dot, i + c));
        room[c] = value_of(term);
        if constexpr (tangent) room[ld + c] = term.d;
      }
      S sum = sum_range(room, 0, channels);
      if constexpr (tangent) sum = S(sum.v, sum_range(room + ld, 0, channels));
      for (int64_t c = 0; c < channels; ++c)
        put(dx + i + c, made(Row::input_gradient(p(c), number<S>(dy, dy_dot, i + c), sum)), mode);
      for (int64_t c = channels; c < ld; ++c) dx[i + c] = T(0);
    });
  }

  // NaN is greater than nothing: it makes the sum of exponentials NaN.
  static T greatest(const T* x, int64_t n) {
    T most = x[0];
    int64_t c = 0;
    if (n >= kLanes<T>) {
      V best = load(x);
      for (c = kLanes<T>; c + kLanes<T> <= n; c += kLanes<T>) {
        const V more = load(x + c);
        best = more > best ? more : best;
      }
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) most = best[lane] > most ? best[lane] : most;
    }
    for (; c < n; ++c) most = x[c] > most ? x[c] : most;
    return most;
  }

  // Calls body(first element of a row, channels, leading dimension, room for two rows) for all, side by side.
  template <class Body>
  static void each_row(const Frame<T>& f, const Node& node, const Body& body) {
    const int64_t ld = f.value(node.output).ld, channels = f.value(node.output).channels;
    f.share(f.rows(node.output), 16 * ld, [&](int64_t begin, int64_t end, T* room) {
      const Body own = body;
      for (int64_t r = begin; r < end; ++r) own(r * ld, channels, ld, room);
    });
  }
};

template <class T>
using Softmax = SoftmaxOfRows<T, false>;
template <class T>
using LogSoftmax = SoftmaxOfRows<T, true>;

}  // namespace METAFAST_ISA
}  // namespace metafast
