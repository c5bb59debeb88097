// Two-dimensional convolution as the indirect product of cpu/kernels/gemm.h, for any kernel, stride, padding and dilation. The
// planner gives most 3x3 ones to winograd_conv2d.h.
//
// A group of images is copied into a zero-padded buffer that stays in cache; index tables made by the planner point
// into it. Forward and weight gradient share the tables, with rows and columns exchanged. The input gradient is the
// convolution of the output cotangents, spread by the stride, with flipped and transposed weights.
#pragma once

#include <string.h>

#include "cpu/kernels/transpose.h"
#include "cpu/primitives/bilinear.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Conv2d : Bilinear<T, Conv2d<T>> {
  struct Shape {
    const Value &x, &y;
    const ConvTables& tables;
    int64_t taps, examples;
    Shape(const Frame<T>& f, const Node& node)
        : x(f.value(node.input[0])),
          y(f.value(node.output)),
          tables(node.conv),
          taps(int64_t(node.kernel[0]) * node.kernel[1]),
          examples(f.examples()) {}
  };

  // Calls body(first image, images, data) for each group, where data is addressed by the tables.
  template <class Body>
  static void for_groups(const Frame<T>& f, const Node& node, const Shape& n, const T* x, Body body) {
    const int64_t image = n.x.rows * n.x.ld, row = int64_t(n.x.width) * n.x.ld;
    const bool unpadded = node.pad[0] == 0 && node.pad[1] == 0;
    const int64_t ld_buffer = int64_t(n.tables.padded_width) * n.x.ld, buffer = n.tables.padded_height * ld_buffer;
    if (!unpadded) memset(f.scratch, 0, size_t(buffer * n.tables.group) * sizeof(T));
    for (int64_t i = 0; i < n.examples; i += n.tables.group) {
      const int64_t images = n.examples - i < n.tables.group ? n.examples - i : n.tables.group;
      if (unpadded) {
        body(i, images, x + i * image);
        continue;
      }
      for (int64_t j = 0; j < images; ++j)
        for (int64_t h = 0; h < n.x.height; ++h)
          memcpy(f.scratch + j * buffer + (h + node.pad[0]) * ld_buffer + node.pad[1] * n.x.ld,
                 x + (i + j) * image + h * row, size_t(row) * sizeof(T));
      body(i, images, f.scratch);
    }
  }

  static void product(const Frame<T>& f, const Node& node, const T* x, const T* w, T* y, Start start, const T* bias) {
    const Shape n(f, node);
    for_groups(f, node, n, x, [&](int64_t i, int64_t images, const T* data) {
      multiply<T>(f.share, {data, n.tables.pixel, n.tables.tap, 0, 0}, w, n.y.ld, y + i * n.y.rows * n.y.ld, n.y.ld,
                  images * n.y.rows, n.y.ld, n.taps * n.x.channels, start, bias);
    });
  }

  static void weight_gradient(const Frame<T>& f, const Node& node, const T* x, const T* dy, T* dw, Start start) {
    const Shape n(f, node);
    for_groups(f, node, n, x, [&](int64_t i, int64_t images, const T* data) {
      multiply<T>(f.share, {data, n.tables.tap, n.tables.pixel, 0, 0}, dy + i * n.y.rows * n.y.ld, n.y.ld, dw, n.y.ld,
                  n.taps * n.x.channels, n.y.ld, images * n.y.rows, start);
      start = Start::kAccumulate;
    });
  }

  // W as [taps, flipped][outputs][ld(inputs)].
  static const T* transpose_weight(const Frame<T>& f, const Node& node, const T* w, T* transposed) {
    const Shape n(f, node);
    for (int64_t tap = 0; tap < n.taps; ++tap)
      transpose(w + tap * n.x.channels * n.y.ld, n.y.ld, n.x.channels, n.y.channels,
                transposed + (n.taps - 1 - tap) * n.y.channels * n.x.ld_cotangent, n.x.ld_cotangent);
    return transposed;
  }

  static void input_gradient(const Frame<T>& f, const Node& node, const T* dy, const T* transposed, T* dx,
                             Start start) {
    const Shape n(f, node);
    const int64_t ld_buffer = int64_t(n.tables.adjoint_width) * n.y.ld, buffer = n.tables.adjoint_height * ld_buffer;
    memset(f.scratch, 0, size_t(buffer * n.tables.group) * sizeof(T));
    for (int64_t i = 0; i < n.examples; i += n.tables.group) {
      const int64_t images = n.examples - i < n.tables.group ? n.examples - i : n.tables.group;
      for (int64_t j = 0; j < images; ++j) spread(node, n, dy + (i + j) * n.y.rows * n.y.ld, f.scratch + j * buffer);
      multiply<T>(f.share, {f.scratch, n.tables.adjoint_pixel, n.tables.adjoint_tap, 0, 0}, transposed,
                  n.x.ld_cotangent, dx + i * n.x.rows * n.x.ld_cotangent, n.x.ld_cotangent, images * n.x.rows,
                  n.x.ld_cotangent, n.taps * n.y.channels, start);
    }
  }

  // One image of cotangents into its buffer. Those that no input pixel reaches fall outside and are dropped.
  static void spread(const Node& node, const Shape& n, const T* dy, T* buffer) {
    for (int64_t h = 0; h < n.y.height; ++h) {
      const int64_t top = n.tables.adjoint_top + h * node.stride[0];
      if (top < 0 || top >= n.tables.adjoint_height) continue;
      for (int64_t w = 0; w < n.y.width; ++w) {
        const int64_t left = n.tables.adjoint_left + w * node.stride[1];
        if (left < 0 || left >= n.tables.adjoint_width) continue;
        memcpy(buffer + (top * n.tables.adjoint_width + left) * n.y.ld, dy + (h * n.y.width + w) * n.y.ld,
               size_t(n.y.ld) * sizeof(T));
      }
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
