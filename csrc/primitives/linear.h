// y = x W + b, with W standing as [inputs][outputs].
#pragma once

#include "../cpu/transpose.h"
#include "bilinear.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Linear : Bilinear<T, Linear<T>> {
  // One sum after the other, where Start::kAccumulate would fold the second into the first.
  static Start in_line(Start start) { return start == Start::kAccumulate ? Start::kContinue : start; }

  static void product(const Frame<T>& f, const Step& s, const T* x, const T* w, T* y, Start start, const T* bias) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    const Gather<T> a{x, nullptr, nullptr, in.ld, 1};
    multiply<T>(a, w, out.ld, y, out.ld, f.rows(s.output), out.ld, in.channels, in_line(start), bias);
  }

  static void weight_gradient(const Frame<T>& f, const Step& s, const T* x, const T* dy, T* dw, Start start) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    const Gather<T> a{x, nullptr, nullptr, 1, in.ld};
    if (out.channels == 1 && in.ld % kLanes<T> == 0) return weight_column(f, s, x, dy, dw, in_line(start));
    multiply<T>(a, dy, out.ld, dw, out.ld, in.channels, out.ld, f.rows(s.output), in_line(start));
  }

  // With one output, registers full of columns would be all pads but one. The same sums as a row, dy' x, fill them.
  static void weight_column(const Frame<T>& f, const Step& s, const T* x, const T* dy, T* dw, Start start) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    T* row = f.scratch;
    if (start == Start::kContinue)
      for (int64_t i = 0; i < in.channels; ++i) row[i] = dw[i * out.ld];
    multiply<T>({dy, nullptr, nullptr, 1, out.ld}, x, in.ld, row, in.ld, 1, in.ld, f.rows(s.output), start);
    for (int64_t i = 0; i < in.channels; ++i) {
      Vector<T> column{};
      column[0] = row[i];
      store(dw + i * out.ld, column);
    }
  }

  // room: [outputs][ld(inputs)]
  static void turn(const Frame<T>& f, const Step& s, const T* w, T* room) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    transpose(w, out.ld, in.channels, out.channels, room, in.cold);
  }

  static void input_gradient(const Frame<T>& f, const Step& s, const T* dy, const T* turned, T* dx, Start start) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    const Gather<T> a{dy, nullptr, nullptr, out.ld, 1};
    multiply<T>(a, turned, in.cold, dx, in.cold, f.rows(s.output), in.cold, out.channels, in_line(start));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
