// A 3x3 convolution with unit stride by cpu/kernels/winograd.h. Transformed weights stay in the tape from pass to pass; each
// tangent, a sum of two convolutions, is one product of two terms.
#pragma once

#include "cpu/kernels/winograd.h"
#include "cpu/primitives/bilinear.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct WinogradConv2d {
  static void forward(const Frame<T>& f, const Node& node) {
    const Shape n(f, node);
    const T* bias = f.parameter(node.parameter[1]);
    n.transform(f, f.parameter(node.parameter[0]), n.weights(f.tape + node.saved));
    n.along.product({{f.activation(node.input[0]), n.weights(f.tape + node.saved)}}, f.activation_out(node.output),
                    bias ? Start::kBias : Start::kZero, bias);
  }

  static void backward(const Frame<T>& f, const Node& node) {
    const Shape n(f, node);
    const T* dy = f.cotangent(node.output);
    if (f.makes_gradient(node, 0))
      n.along.weight_gradient({{f.activation(node.input[0]), dy}}, f.parameter_gradient(node.parameter[0]),
                              begin_with(node.parameter_mode[0]));
    if (f.makes_gradient(node, 1)) bias_gradient(f, node, dy, f.parameter_gradient(node.parameter[1]));
    if (!wanted(node.input_mode[0])) return;
    n.flip(f, f.tape + node.saved);
    n.against.product({{dy, n.flipped(f.tape + node.saved)}}, f.cotangent(node.input[0]),
                      begin_with(node.input_mode[0]), nullptr);
  }

  static void tangent_forward(const Frame<T>& f, const Node& node) {
    T* y_dot = f.activation_dot(node.output);
    if (!y_dot) return;
    const Shape n(f, node);
    const T *w_dot = f.parameter_dot(node.parameter[0]), *bias_dot = f.parameter_dot(node.parameter[1]);
    T* transformed = nullptr;
    if (w_dot) {
      transformed = n.weights(f.tangent_tape + node.saved_dot);
      n.transform(f, w_dot, transformed);
    }
    n.along.product({{f.activation_dot(node.input[0]), n.weights(f.tape + node.saved)},
                     {w_dot ? f.activation(node.input[0]) : nullptr, transformed}},
                    y_dot, bias_dot ? Start::kBias : Start::kZero, bias_dot);
  }

  static void tangent_backward(const Frame<T>& f, const Node& node) {
    const Shape n(f, node);
    const T *dy = f.cotangent(node.output), *dy_dot = f.cotangent_dot(node.output);
    if (wanted(node.parameter_mode[0]))
      n.along.weight_gradient({{f.activation(node.input[0]), dy_dot}, {f.activation_dot(node.input[0]), dy}},
                              f.parameter_gradient_dot(node.parameter[0]), begin_with(node.parameter_mode[0]));
    if (wanted(node.parameter_mode[1])) bias_gradient(f, node, dy_dot, f.parameter_gradient_dot(node.parameter[1]));
    if (!wanted(node.input_mode[0])) return;
    const bool moves =
        f.parameter_dot(node.parameter[0]) != nullptr;  // then tangent_forward has transformed its tangent
    T* tangent = nullptr;
    if (moves) {
      n.flip(f, f.tangent_tape + node.saved_dot);
      tangent = n.flipped(f.tangent_tape + node.saved_dot);
    }
    n.against.product({{dy_dot, n.flipped(f.tape + node.saved)}, {moves ? dy : nullptr, tangent}},
                      f.cotangent_dot(node.input[0]), begin_with(node.input_mode[0]), nullptr);
  }

 private:
  struct Shape {
    const Value &x, &y;
    const Winograd<T> along, against;  // the convolution, and that of its input gradient
    Shape(const Frame<T>& f, const Node& node)
        : x(f.value(node.input[0])),
          y(f.value(node.output)),
          along{f.examples(), x.height, x.width,     x.channels,  x.ld,   y.height,
                y.width,      y.ld,     node.pad[0], node.pad[1], f.share},
          against{f.examples(), y.height,       y.width,         y.channels,      y.ld,   x.height,
                  x.width,      x.ld_cotangent, 2 - node.pad[0], 2 - node.pad[1], f.share} {}

    // What the node saves: transformed weights, then those of the input gradient.
    T* weights(T* saved) const { return saved; }
    T* flipped(T* saved) const { return saved + 16 * x.channels * y.ld; }
    void transform(const Frame<T>& f, const T* w, T* out) const {
      constexpr int64_t L = kLanes<T>;
      const int64_t slice = x.channels * y.ld;
      f.share(slice / L, 32 * L,
              [&](int64_t begin, int64_t end, T*) { transform_weights(w, slice, begin * L, end * L, out); });
    }
    void flip(const Frame<T>& f, T* saved) const {
      f.share(16, 8 * x.channels * y.ld, [&](int64_t begin, int64_t end, T*) {
        flip_weights(weights(saved), x.channels, y.ld, y.channels, x.ld_cotangent, begin, end, flipped(saved));
      });
    }
  };
};

}  // namespace METAFAST_ISA
}  // namespace metafast
