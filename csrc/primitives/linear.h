// y = x W + b, with W standing as [inputs][outputs].
#pragma once

#include "../cpu/transpose.h"
#include "bilinear.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Linear : Bilinear<T, Linear<T>> {
  static void product(const Frame<T>& f, const Step& s, const T* x, const T* w, T* y, Start start, const T* bias) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    multiply<T>({x, nullptr, nullptr, in.ld, 1}, w, out.ld, y, out.ld, f.rows(s.output), out.ld, in.channels, start,
                bias);
  }

  static void weight_gradient(const Frame<T>& f, const Step& s, const T* x, const T* dy, T* dw, Start start) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    multiply<T>({x, nullptr, nullptr, 1, in.ld}, dy, out.ld, dw, out.ld, in.channels, out.ld, f.rows(s.output), start);
  }

  // W transposed: [outputs][ld(inputs)].
  static void pack(const Frame<T>& f, const Step& s, const T* w, T* packed) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    transpose(w, out.ld, in.channels, out.channels, packed, in.cold);
  }

  static void input_gradient(const Frame<T>& f, const Step& s, const T* dy, const T* packed, T* dx, Start start) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    multiply<T>({dy, nullptr, nullptr, out.ld, 1}, packed, in.cold, dx, in.cold, f.rows(s.output), in.cold,
                out.channels, start);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
