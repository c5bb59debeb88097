// Convolutions and transposed convolutions from one set of maps.
//
// A convolution leads from a large image to a small one: the small one has an element for each place of the kernel in the
// padded large one. Its adjoint leads back, and a transposed convolution is that adjoint with a bias. So `Maps` supply
//   along(f, node, n, large, W, small, start, bias)          small (+)= bias + large * W
//   against(f, node, n, small, flipped, large, start, bias)  large (+)= bias + the adjoint
//   weight_gradient(f, node, n, large, small, dW, start)     dW (+)= their products, for each tap
//   flip(n, W, flipped)                                      W as [taps, flipped][small channels of a group][ld(large)]
//   room_against(n)                                          the elements of scratch that `against` uses
// and the two primitives differ in which value is the large one.
#pragma once

#include <string.h>

#include "cpu/kernels/transpose.h"
#include "cpu/primitives/bilinear.h"

namespace metafast {
namespace METAFAST_ISA {

struct ConvShape {
  const Value &large, &small;
  const ConvTables& tables;
  int64_t taps, examples;
  int64_t large_of_group, groups, small_of_group;  // channels, and how often

  template <class T>
  ConvShape(const Frame<T>& f, const Node& node, int large_value, int small_value)
      : large(f.value(large_value)),
        small(f.value(small_value)),
        tables(node.conv),
        taps(int64_t(node.kernel[0]) * node.kernel[1]),
        examples(f.examples()),
        large_of_group(f.parameter_plan(node.parameter[0]).inputs),
        groups(large.channels / large_of_group),
        small_of_group(small.channels / groups) {}

  // A group's columns of a product: of a single one with the pads.
  int64_t large_columns() const { return groups == 1 ? large.ld_cotangent : large_of_group; }
  int64_t small_columns() const { return groups == 1 ? small.ld : small_of_group; }
};

template <class T, class Maps>
struct Convolution : Bilinear<T, Convolution<T, Maps>> {
  static ConvShape shape(const Frame<T>& f, const Node& node) { return {f, node, node.input[0], node.output}; }

  static void product(const Frame<T>& f, const Node& node, const T* x, const T* w, T* y, Start start, const T* bias) {
    Maps::along(f, node, shape(f, node), x, w, y, start, bias);
  }
  static void weight_gradient(const Frame<T>& f, const Node& node, const T* x, const T* dy, T* dw, Start start) {
    Maps::weight_gradient(f, node, shape(f, node), x, dy, dw, start);
  }
  static const T* transpose_weight(const Frame<T>& f, const Node& node, const T* w, T* flipped) {
    Maps::flip(shape(f, node), w, flipped);
    return flipped;
  }
  static void input_gradient(const Frame<T>& f, const Node& node, const T* dy, const T* flipped, T* dx, Start start) {
    Maps::against(f, node, shape(f, node), dy, flipped, dx, start, nullptr);
  }
};

// Flipped weights stand in scratch, behind what `against` uses, as long as a product takes.
template <class T, class Maps>
struct TransposedConvolution : Bilinear<T, TransposedConvolution<T, Maps>> {
  static ConvShape shape(const Frame<T>& f, const Node& node) { return {f, node, node.output, node.input[0]}; }

  static void product(const Frame<T>& f, const Node& node, const T* x, const T* w, T* y, Start start, const T* bias) {
    const ConvShape n = shape(f, node);
    T* const flipped = f.scratch + Maps::room_against(n);
    Maps::flip(n, w, flipped);
    Maps::against(f, node, n, x, flipped, y, start, bias);
  }
  static void weight_gradient(const Frame<T>& f, const Node& node, const T* x, const T* dy, T* dw, Start start) {
    const ConvShape n = shape(f, node);
    Maps::weight_gradient(f, node, n, dy, x, dw, start);
    // Activations have pads that need not be zero, gradients of parameters have not.
    for (int64_t row = 0; row < n.taps * n.large_of_group; ++row)
      zero_pads(dw + row * n.small.ld, n.small.channels, n.small.ld);
  }
  static const T* transpose_weight(const Frame<T>&, const Node&, const T* w, T*) { return w; }
  static const T* transposed(const Frame<T>& f, const Node& node) { return f.parameter(node.parameter[0]); }
  static void input_gradient(const Frame<T>& f, const Node& node, const T* dy, const T* w, T* dx, Start start) {
    Maps::along(f, node, shape(f, node), dy, w, dx, start, nullptr);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
