// Primitives that are linear maps: sums, rearrangements and average pooling. A map supplies
//   apply(f, node, input number, x, y, accumulate)      y (+)= A x
//   adjoint(f, node, input number, dy, dx, accumulate)  dx (+)= A' dy
// and its tangents are the same maps on the tangent planes. Max pooling, once the maxima are known, is one too.
#pragma once

#include <string.h>

#include "cpu/frame.h"
#include "formulas/windows.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T, class Map>
struct LinearMap {
  static void forward(const Frame<T>& f, const Node& node) {
    for (int i = 0; i < 2 && node.input[i] >= 0; ++i)
      Map::apply(f, node, f.activation(node.input[i]), f.activation_out(node.output), i > 0);
  }
  static void backward(const Frame<T>& f, const Node& node) {
    for (int i = 0; i < 2 && node.input[i] >= 0; ++i)
      if (wanted(node.input_mode[i]))
        Map::adjoint(f, node, f.cotangent(node.output), f.cotangent(node.input[i]),
                     node.input_mode[i] == GradientMode::kAccumulate);
  }
  static void tangent_forward(const Frame<T>& f, const Node& node) {
    bool written = false;
    for (int i = 0; i < 2 && node.input[i] >= 0; ++i)
      if (const T* x_dot = f.activation_dot(node.input[i])) {
        Map::apply(f, node, x_dot, f.activation_dot(node.output), written);
        written = true;
      }
  }
  static void tangent_backward(const Frame<T>& f, const Node& node) {
    for (int i = 0; i < 2 && node.input[i] >= 0; ++i)
      if (wanted(node.input_mode[i]))
        Map::adjoint(f, node, f.cotangent_dot(node.output), f.cotangent_dot(node.input[i]),
                     node.input_mode[i] == GradientMode::kAccumulate);
  }
};

// [height * width][channels] to one row in torch's order, channels outermost.
template <class T>
struct Flatten : LinearMap<T, Flatten<T>> {
  template <class Body>
  static void for_elements(const Frame<T>& f, const Node& node, Body body) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    for (int64_t n = 0; n < f.examples(); ++n)
      for (int64_t r = 0; r < in.rows; ++r)
        for (int64_t c = 0; c < in.channels; ++c) body((n * in.rows + r) * in.ld + c, n * out.ld + flattened(in, r, c));
  }
  static void apply(const Frame<T>& f, const Node& node, const T* x, T* y, bool) {
    for_elements(f, node, [&](int64_t i, int64_t o) { y[o] = x[i]; });
    clear_pads(f, f.value(node.output), y);
  }
  static void adjoint(const Frame<T>& f, const Node& node, const T* dy, T* dx, bool accumulate) {
    if (accumulate) {
      for_elements(f, node, [&](int64_t i, int64_t o) { dx[i] += dy[o]; });
    } else {
      for_elements(f, node, [&](int64_t i, int64_t o) { dx[i] = dy[o]; });
      clear_pads(f, f.value(node.input[0]), dx);
    }
  }
  static void clear_pads(const Frame<T>& f, const Value& v, T* x) {
    for (int64_t r = 0; r < f.examples() * v.rows; ++r)
      for (int64_t c = v.channels; c < v.ld; ++c) x[r * v.ld + c] = T(0);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
