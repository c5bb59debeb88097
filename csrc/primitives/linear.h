// y = x W + b, with W standing as [inputs][outputs].
#pragma once

#include <string.h>

#include "bilinear.h"

namespace metafast {
namespace METAFAST_ISA {

// out[j][i] = in[i][j] for i < rows, j < columns; pads of out are zero. Both leading dimensions are whole vectors.
template <class T>
static void transpose(const T* in, int64_t ld_in, int64_t rows, int64_t columns, T* out, int64_t ld_out) {
  constexpr int64_t B = kLanes<T>;
  for (int64_t i0 = 0; i0 < ld_out; i0 += B)
    for (int64_t j0 = 0; j0 < columns; j0 += B) {
      const int64_t jn = j0 + B < columns ? B : columns - j0, in_rows = rows - i0 < B ? rows - i0 : B;
      T block[B][B] = {};
      for (int64_t i = 0; i < in_rows; ++i)
        for (int64_t j = 0; j < B; ++j) block[j][i] = in[(i0 + i) * ld_in + j0 + j];
      for (int64_t j = 0; j < jn; ++j) memcpy(out + (j0 + j) * ld_out + i0, block[j], sizeof block[j]);
    }
}

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
