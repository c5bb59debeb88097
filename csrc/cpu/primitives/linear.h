// y = x W + b, with W standing as [inputs][outputs].
#pragma once

#include "cpu/kernels/transpose.h"
#include "cpu/primitives/bilinear.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Linear : Bilinear<T, Linear<T>> {
  using Bilinear<T, Linear<T>>::in_line;

  static void product(const Frame<T>& f, const Node& node, const T* x, const T* w, T* y, Start start, const T* bias) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const Gather<T> a{x, nullptr, nullptr, in.ld, 1, node.after_relu};
    multiply<T>(f.share, a, w, out.ld, y, out.ld, f.rows(node.output), out.ld, in.channels, in_line(start), bias);
  }

  static void weight_gradient(const Frame<T>& f, const Node& node, const T* x, const T* dy, T* dw, Start start) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const Gather<T> a{x, nullptr, nullptr, 1, in.ld, node.after_relu};
    multiply<T>(f.share, a, dy, out.ld, dw, out.ld, in.channels, out.ld, f.rows(node.output), in_line(start));
  }

  // room: [outputs][ld(inputs)]
  static const T* transpose_weight(const Frame<T>& f, const Node& node, const T* w, T* room) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    transpose(w, out.ld, in.channels, out.channels, room, in.ld_cotangent);
    return room;
  }

  static void input_gradient(const Frame<T>& f, const Node& node, const T* dy, const T* transposed, T* dx,
                             Start start) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const Gather<T> a{dy, nullptr, nullptr, out.ld, 1, node.masked_by >= 0};
    multiply<T>(f.share, a, transposed, in.ld_cotangent, dx, in.ld_cotangent, f.rows(node.output), in.ld_cotangent,
                out.channels, in_line(start));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
