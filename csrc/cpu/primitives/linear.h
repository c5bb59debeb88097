// y = x W + b, with W standing as [inputs][outputs].
#pragma once

#include "cpu/kernels/transpose.h"
#include "cpu/primitives/bilinear.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Linear : Bilinear<T, Linear<T>> {
  using Bilinear<T, Linear<T>>::in_line;

  static void product(const Frame<T>& f, const Step& s, const T* x, const T* w, T* y, Start start, const T* bias) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    const Gather<T> a{x, nullptr, nullptr, in.ld, 1, s.after_relu};
    multiply<T>(f.share, a, w, out.ld, y, out.ld, f.rows(s.output), out.ld, in.channels, in_line(start), bias);
  }

  static void weight_gradient(const Frame<T>& f, const Step& s, const T* x, const T* dy, T* dw, Start start) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    const Gather<T> a{x, nullptr, nullptr, 1, in.ld, s.after_relu};
    multiply<T>(f.share, a, dy, out.ld, dw, out.ld, in.channels, out.ld, f.rows(s.output), in_line(start));
  }

  // room: [outputs][ld(inputs)]
  static const T* turn(const Frame<T>& f, const Step& s, const T* w, T* room) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    transpose(w, out.ld, in.channels, out.channels, room, in.cold);
    return room;
  }

  static void input_gradient(const Frame<T>& f, const Step& s, const T* dy, const T* turned, T* dx, Start start) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    const Gather<T> a{dy, nullptr, nullptr, out.ld, 1, s.shut_by >= 0};
    multiply<T>(f.share, a, turned, in.cold, dx, in.cold, f.rows(s.output), in.cold, out.channels, in_line(start));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
