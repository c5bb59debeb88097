// Primitives that are linear maps: sums, rearrangements and average pooling. A map supplies
//   apply(f, s, input number, x, y, accumulate)      y (+)= A x
//   adjoint(f, s, input number, dy, dx, accumulate)  dx (+)= A' dy
// and its tangents are the same maps on the tangent planes. Max pooling, once the maxima are known, is one too.
#pragma once

#include <string.h>

#include "cpu/frame.h"
#include "formulas/windows.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T, class Map>
struct LinearMap {
  static void forward(const Frame<T>& f, const Step& s) {
    for (int i = 0; i < 2 && s.input[i] >= 0; ++i)
      Map::apply(f, s, f.activation(s.input[i]), f.activation_out(s.output), i > 0);
  }
  static void backward(const Frame<T>& f, const Step& s) {
    for (int i = 0; i < 2 && s.input[i] >= 0; ++i)
      if (wanted(s.input_mode[i]))
        Map::adjoint(f, s, f.cotangent(s.output), f.cotangent(s.input[i]),
                     s.input_mode[i] == GradientMode::kAccumulate);
  }
  static void tangent_forward(const Frame<T>& f, const Step& s) {
    bool written = false;
    for (int i = 0; i < 2 && s.input[i] >= 0; ++i)
      if (const T* x_dot = f.activation_dot(s.input[i])) {
        Map::apply(f, s, x_dot, f.activation_dot(s.output), written);
        written = true;
      }
  }
  static void tangent_backward(const Frame<T>& f, const Step& s) {
    for (int i = 0; i < 2 && s.input[i] >= 0; ++i)
      if (wanted(s.input_mode[i]))
        Map::adjoint(f, s, f.cotangent_dot(s.output), f.cotangent_dot(s.input[i]),
                     s.input_mode[i] == GradientMode::kAccumulate);
  }
};

template <class T>
struct Add : LinearMap<T, Add<T>> {
  static void apply(const Frame<T>& f, const Step& s, const T* __restrict x, T* __restrict y, bool accumulate) {
    const int64_t n = f.rows(s.output) * f.value(s.output).ld;
    if (accumulate)
      for (int64_t i = 0; i < n; ++i) y[i] += x[i];
    else
      memcpy(y, x, size_t(n) * sizeof(T));
  }
  static void adjoint(const Frame<T>& f, const Step& s, const T* dy, T* dx, bool accumulate) {
    apply(f, s, dy, dx, accumulate);
  }
};

// [height * width][channels] to one row in torch's order, channels outermost.
template <class T>
struct Flatten : LinearMap<T, Flatten<T>> {
  template <class Body>
  static void for_elements(const Frame<T>& f, const Step& s, Body body) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    for (int64_t n = 0; n < f.examples(); ++n)
      for (int64_t r = 0; r < in.rows; ++r)
        for (int64_t c = 0; c < in.channels; ++c) body((n * in.rows + r) * in.ld + c, n * out.ld + flattened(in, r, c));
  }
  static void apply(const Frame<T>& f, const Step& s, const T* x, T* y, bool) {
    for_elements(f, s, [&](int64_t i, int64_t o) { y[o] = x[i]; });
    clear_pads(f, f.value(s.output), y);
  }
  static void adjoint(const Frame<T>& f, const Step& s, const T* dy, T* dx, bool accumulate) {
    if (accumulate) {
      for_elements(f, s, [&](int64_t i, int64_t o) { dx[i] += dy[o]; });
    } else {
      for_elements(f, s, [&](int64_t i, int64_t o) { dx[i] = dy[o]; });
      clear_pads(f, f.value(s.input[0]), dx);
    }
  }
  static void clear_pads(const Frame<T>& f, const Value& v, T* x) {
    for (int64_t r = 0; r < f.examples() * v.rows; ++r)
      for (int64_t c = v.channels; c < v.ld; ++c) x[r * v.ld + c] = T(0);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
