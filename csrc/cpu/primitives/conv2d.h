// Two-dimensional convolution as the indirect product of cpu/kernels/gemm.h, for any kernel, stride, padding and dilation. The
// planner gives most 3x3 ones to winograd_conv2d.h, and those in groups to grouped_conv2d.h, unless every group is whole
// vectors: then it is a product of its own.
//
// A group of images is copied into a zero-padded buffer that stays in cache; index tables made by the planner point
// into it. Forward and weight gradient share the tables, with rows and columns exchanged. The adjoint is the
// convolution of the small images, spread by the stride, with flipped and transposed weights. Towards images of few channels,
// as the input mostly has, it is a plain product instead: a row for each small position, which holds what that gives to each
// place of the kernel in each channel. A large position then sums, over the kernel, parts of rows.
#pragma once

#include "cpu/primitives/convolution.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct ConvProducts {
  // Calls body(first image, images, data) for each group, where data is addressed by the tables.
  template <class Body>
  static void for_groups(const Frame<T>& f, const Node& node, const ConvShape& n, const T* x, Body body) {
    const int64_t image = n.large.rows * n.large.ld, row = int64_t(n.large.width) * n.large.ld;
    const bool unpadded = node.pad[0] == 0 && node.pad[1] == 0;
    const int64_t ld_buffer = int64_t(n.tables.padded_width) * n.large.ld;
    const int64_t buffer = n.tables.padded_height * ld_buffer;
    if (!unpadded) memset(f.scratch, 0, size_t(buffer * n.tables.group) * sizeof(T));
    for (int64_t i = 0; i < n.examples; i += n.tables.group) {
      const int64_t images = n.examples - i < n.tables.group ? n.examples - i : n.tables.group;
      if (unpadded) {
        body(i, images, x + i * image);
        continue;
      }
      for (int64_t j = 0; j < images; ++j)
        for (int64_t h = 0; h < n.large.height; ++h)
          memcpy(f.scratch + j * buffer + (h + node.pad[0]) * ld_buffer + node.pad[1] * n.large.ld,
                 x + (i + j) * image + h * row, size_t(row) * sizeof(T));
      body(i, images, f.scratch);
    }
  }

  static void along(const Frame<T>& f, const Node& node, const ConvShape& n, const T* x, const T* w, T* y, Start start,
                    const T* bias) {
    for_groups(f, node, n, x, [&](int64_t i, int64_t images, const T* data) {
      for (int64_t group = 0; group < n.groups; ++group) {
        const int64_t at = group * n.small_of_group;
        multiply<T>(f.share, {data + group * n.large_of_group, n.tables.pixel, n.tables.tap, 0, 0}, w + at, n.small.ld,
                    y + i * n.small.rows * n.small.ld + at, n.small.ld, images * n.small.rows, n.small_columns(),
                    n.taps * n.large_of_group, start, bias ? bias + at : nullptr);
      }
    });
  }

  static void weight_gradient(const Frame<T>& f, const Node& node, const ConvShape& n, const T* x, const T* dy, T* dw,
                              Start start) {
    for_groups(f, node, n, x, [&](int64_t i, int64_t images, const T* data) {
      for (int64_t group = 0; group < n.groups; ++group) {
        const int64_t at = group * n.small_of_group;
        multiply<T>(f.share, {data + group * n.large_of_group, n.tables.tap, n.tables.pixel, 0, 0},
                    dy + i * n.small.rows * n.small.ld + at, n.small.ld, dw + at, n.small.ld, n.taps * n.large_of_group,
                    n.small_columns(), images * n.small.rows, start);
      }
      start = Start::kAccumulate;
    });
  }

  static void flip(const ConvShape& n, const T* w, T* flipped) {
    const int64_t ld = n.large.ld_cotangent, columns = n.tables.adjoint_columns;
    if (columns) return transpose(w, n.small.ld, n.taps * n.large.channels, n.small.channels, flipped, columns);
    for (int64_t tap = 0; tap < n.taps; ++tap)
      for (int64_t group = 0; group < n.groups; ++group) {
        const T* from = w + tap * n.large_of_group * n.small.ld + group * n.small_of_group;
        T* to = flipped + (n.taps - 1 - tap) * n.small_of_group * ld + group * n.large_of_group;
        transpose_rows<T>(Rows<const T>{from, n.small.ld}, n.large_of_group, n.small_of_group, Rows<T>{to, ld},
                          n.large_columns());
      }
  }

  static int64_t room_against(const ConvShape& n) {
    if (n.tables.adjoint_columns) return n.tables.group * n.small.rows * n.tables.adjoint_columns + kLanes<T>;
    return int64_t(n.tables.group) * n.tables.adjoint_height * n.tables.adjoint_width * n.small.ld;
  }

  static void against(const Frame<T>& f, const Node& node, const ConvShape& n, const T* dy, const T* flipped, T* dx,
                      Start start, const T* bias) {
    if (n.tables.adjoint_columns) return against_few_channels(f, node, n, dy, flipped, dx, start, bias);
    const int64_t buffer = room_against(n) / n.tables.group;
    memset(f.scratch, 0, size_t(room_against(n)) * sizeof(T));
    for (int64_t i = 0; i < n.examples; i += n.tables.group) {
      const int64_t images = n.examples - i < n.tables.group ? n.examples - i : n.tables.group;
      for (int64_t j = 0; j < images; ++j)
        spread(node, n, dy + (i + j) * n.small.rows * n.small.ld, f.scratch + j * buffer);
      for (int64_t group = 0; group < n.groups; ++group) {
        const int64_t at = group * n.large_of_group, ld = n.large.ld_cotangent;
        multiply<T>(f.share, {f.scratch + group * n.small_of_group, n.tables.adjoint_pixel, n.tables.adjoint_tap, 0, 0},
                    flipped + at, ld, dx + i * n.large.rows * ld + at, ld, images * n.large.rows, n.large_columns(),
                    n.taps * n.small_of_group, start, bias ? bias + at : nullptr);
      }
    }
  }

  static void against_few_channels(const Frame<T>& f, const Node& node, const ConvShape& n, const T* dy,
                                   const T* transposed, T* dx, Start start, const T* bias) {
    const int64_t columns = n.tables.adjoint_columns, image = n.small.rows * columns;
    T* const products = f.scratch;
    for (int64_t i = 0; i < n.examples; i += n.tables.group) {
      const int64_t images = n.examples - i < n.tables.group ? n.examples - i : n.tables.group;
      multiply<T>(f.share, {dy + i * n.small.rows * n.small.ld, nullptr, nullptr, int32_t(n.small.ld), 1}, transposed,
                  columns, products, columns, images * n.small.rows, columns, n.small.channels, Start::kZero);
      store(products + images * image, Vector<T>{});  // the last part is read as a whole vector
      f.share(images * n.large.height, 2 * n.taps * n.large.width * kLanes<T>, [&](int64_t begin, int64_t end, T*) {
        for (int64_t row = begin; row < end; ++row)
          sum_parts(node, n, products + row / n.large.height * image, row % n.large.height,
                    dx + (i * n.large.height + row) * n.large.width * kLanes<T>, start, bias);
      });
    }
  }

  // A row of the large image from its products. Channels are fewer than lanes, and the others' sums are zero.
  static void sum_parts(const Node& node, const ConvShape& n, const T* products, int64_t h, T* dx, Start start,
                        const T* bias) {
    using V = Vector<T>;
    auto of_channels = V{} == V{};
    for (int lane = n.large.channels; lane < kLanes<T>; ++lane) of_channels[lane] = 0;
    const int64_t step = n.large.channels, columns = n.tables.adjoint_columns;
    for (int64_t w = 0; w < n.large.width; ++w, dx += kLanes<T>) {
      V sum{};
      for (int64_t i = 0; i < node.kernel[0]; ++i) {
        const int64_t from_h = h + node.pad[0] - i * node.dilation[0];
        if (from_h < 0 || from_h >= n.small.height) continue;
        for (int64_t j = 0; j < node.kernel[1]; ++j) {
          const int64_t from_w = w + node.pad[1] - j * node.dilation[1];
          if (from_w < 0 || from_w >= n.small.width) continue;
          sum += load(products + (from_h * n.small.width + from_w) * columns + (i * node.kernel[1] + j) * step);
        }
      }
      const V before = start == Start::kZero ? V{} : load(start == Start::kBias ? bias : dx);
      store(dx, before + (of_channels ? sum : V{}));
    }
  }

  // One small image into its buffer. Elements that no pixel of the large one reaches fall outside and are dropped.
  static void spread(const Node& node, const ConvShape& n, const T* dy, T* buffer) {
    for (int64_t h = 0; h < n.small.height; ++h) {
      const int64_t top = n.tables.adjoint_top + h * node.stride[0];
      if (top < 0 || top >= n.tables.adjoint_height) continue;
      for (int64_t w = 0; w < n.small.width; ++w) {
        const int64_t left = n.tables.adjoint_left + w * node.stride[1];
        if (left < 0 || left >= n.tables.adjoint_width) continue;
        memcpy(buffer + (top * n.tables.adjoint_width + left) * n.small.ld, dy + (h * n.small.width + w) * n.small.ld,
               size_t(n.small.ld) * sizeof(T));
      }
    }
  }
};

template <class T>
using Conv2d = Convolution<T, ConvProducts<T>>;
template <class T>
using ConvTranspose2d = TransposedConvolution<T, ConvProducts<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
