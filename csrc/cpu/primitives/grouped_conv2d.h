// Convolution in small groups: a channel of the result is made of the few channels of its group.
//
// Channels are innermost, so where every channel is a group of its own (a depthwise convolution) each tap is a product of
// vectors of channels, element by element. Larger groups are a sum of such: for the k-th channel of every group, a plane
// that holds it beside each channel that it makes, times the k-th row of each tap. A plane is a zero-padded copy of one
// image, which stays in cache; no product is done that is not needed, whatever the groups.
#pragma once

#include "cpu/primitives/convolution.h"

namespace metafast {
namespace METAFAST_ISA {

// Where the pixels of an image go in its plane, and how often channels come there: those of a group of `source` ones
// beside `target` ones.
struct PlaneLayout {
  int64_t height, width, top, left, step[2];
  int64_t source, target;

  static PlaneLayout of_large(const Node& node, const ConvShape& n) {
    return {n.tables.padded_height, n.tables.padded_width, node.pad[0], node.pad[1], {1, 1},
            n.large_of_group,       n.small_of_group};
  }
  static PlaneLayout of_small(const Node& node, const ConvShape& n) {
    return {n.tables.adjoint_height,          n.tables.adjoint_width, n.tables.adjoint_top, n.tables.adjoint_left,
            {node.stride[0], node.stride[1]}, n.small_of_group,       n.large_of_group};
  }
};

// The k-th channel of each group of an image, beside the channels [begin, end) of the result. What is not written is zero.
template <class T>
static void fill_plane(const PlaneLayout& p, const Value& v, int64_t ld_plane, const T* image, int64_t k, int64_t begin,
                       int64_t end, T* plane) {
  const int64_t first = begin / p.target;
  for (int64_t h = 0; h < v.height; ++h) {
    const int64_t top = p.top + h * p.step[0];
    if (top < 0 || top >= p.height) continue;
    for (int64_t w = 0; w < v.width; ++w) {
      const int64_t left = p.left + w * p.step[1];
      if (left < 0 || left >= p.width) continue;
      const T* from = image + (h * v.width + w) * v.ld + first * p.source + k;
      T* to = plane + (top * p.width + left) * ld_plane;
      if (p.source == 1 && p.target == 1) {
        memcpy(to, from, size_t(end - begin) * sizeof(T));
        continue;
      }
      for (int64_t c = begin, stop = (first + 1) * p.target; c < end; stop += p.target, from += p.source)
        for (const T value = *from; c < stop && c < end; ++c) *to++ = value;
    }
  }
}

// A product of a plane and the taps of one k, for the pixels of the result.
template <class T>
struct PlaneProduct {
  const Node& node;
  const T* plane;
  int64_t width, ld;  // of the plane
  int64_t stride[2];  // of the result in the plane
  const T* w;         // [taps][step_w]
  int64_t step_w;
  T* out;  // [rows][columns][ld]
  int64_t rows, columns;
  const T* begin;  // what sums begin with, if not with what stands in out
  bool continues;

  void run() const {
    for (int64_t c = 0; c < ld; c += kLanes<T>)
      for (int64_t h = 0; h < rows; ++h) {
        int64_t column = 0;
        for (; column + 8 <= columns; column += 8) pixels<8>(h, column, c);
        if (columns - column >= 4) pixels<4>(h, column, c), column += 4;
        if (columns - column >= 2) pixels<2>(h, column, c), column += 2;
        if (columns > column) pixels<1>(h, column, c);
      }
  }

  template <int N>
  void pixels(int64_t h, int64_t column, int64_t c) const {
    T* to = out + (h * columns + column) * ld + c;
    const T* row = plane + (h * stride[0] * width + column * stride[1]) * ld + c;
    const T* weight = w + c;
    const int64_t next = stride[1] * ld, right = node.dilation[1] * ld, down = node.dilation[0] * width * ld;
    Vector<T> sum[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sum[i] = continues ? load(to + i * ld) : begin ? load(begin + c) : Vector<T>{};
    for (int32_t kh = 0; kh < node.kernel[0]; ++kh, row += down) {
      const T* from = row;
      for (int32_t kw = 0; kw < node.kernel[1]; ++kw, from += right, weight += step_w) {
        const Vector<T> factor = load(weight);
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) sum[i] += load(from + i * next) * factor;
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store(to + i * ld, sum[i]);
  }
};

template <class T>
struct GroupedConvProducts {
  // out (+)= begin + the products of the planes of an image and w, of [taps][channels of a group in the source][ld(out)].
  static void convolve(const Frame<T>& f, const Node& node, const ConvShape& n, const PlaneLayout& layout,
                       const Value& from, const T* x, const Value& to, const int64_t (&stride)[2], const T* w, T* out,
                       Start start, const T* bias) {
    const int64_t ld = to.ld_cotangent;
    f.share(n.examples, n.taps * layout.source * to.rows * ld, [&](int64_t first, int64_t last, T* plane) {
      memset(plane, 0, size_t(layout.height * layout.width * ld) * sizeof(T));
      for (int64_t i = first; i < last; ++i)
        for (int64_t k = 0; k < layout.source; ++k) {
          fill_plane(layout, from, ld, x + i * from.rows * from.ld, k, 0, to.channels, plane);
          PlaneProduct<T>{node,
                          plane,
                          layout.width,
                          ld,
                          {stride[0], stride[1]},
                          w + k * ld,
                          layout.source * ld,
                          out + i * to.rows * ld,
                          to.height,
                          to.width,
                          start == Start::kBias ? bias : nullptr,
                          k > 0 || start == Start::kAccumulate || start == Start::kContinue}
              .run();
        }
    });
  }

  static int64_t room_against(const ConvShape& n) {
    return n.tables.adjoint_height * n.tables.adjoint_width * n.large.ld_cotangent;
  }

  static void along(const Frame<T>& f, const Node& node, const ConvShape& n, const T* x, const T* w, T* y, Start start,
                    const T* bias) {
    convolve(f, node, n, PlaneLayout::of_large(node, n), n.large, x, n.small, {node.stride[0], node.stride[1]}, w, y,
             start, bias);
  }

  static void against(const Frame<T>& f, const Node& node, const ConvShape& n, const T* dy, const T* flipped, T* dx,
                      Start start, const T* bias) {
    convolve(f, node, n, PlaneLayout::of_small(node, n), n.small, dy, n.large, {1, 1}, flipped, dx, start, bias);
  }

  static void flip(const ConvShape& n, const T* w, T* flipped) {
    const int64_t ld = n.large.ld_cotangent;
    for (int64_t tap = 0; tap < n.taps; ++tap) {
      const T* from = w + tap * n.large_of_group * n.small.ld;
      T* to = flipped + (n.taps - 1 - tap) * n.small_of_group * ld;
      for (int64_t k = 0; k < n.small_of_group; ++k, to += ld) {
        memset(to, 0, size_t(ld) * sizeof(T));
        int64_t c = 0;
        for (int64_t group = 0; c < n.large.channels; ++group)
          for (int64_t j = 0; j < n.large_of_group; ++j, ++c)
            to[c] = from[j * n.small.ld + group * n.small_of_group + k];
      }
    }
  }

  // Sums over images and positions for each weight: parts are of the weights' vectors, since sums must not be cut.
  static void weight_gradient(const Frame<T>& f, const Node& node, const ConvShape& n, const T* x, const T* dy, T* dw,
                              Start start) {
    const PlaneLayout layout = PlaneLayout::of_large(node, n);
    const int64_t L = kLanes<T>, size = n.small.rows * n.small.ld;
    f.share(n.small.ld / L, n.examples * layout.source * n.taps * n.small.rows * L,
            [&](int64_t first, int64_t last, T* plane) {
              const int64_t ld = (last - first) * L, end = last * L;
              const int64_t channels = end < n.small.channels ? end : n.small.channels;
              memset(plane, 0, size_t(layout.height * layout.width * ld) * sizeof(T));
              for (int64_t i = 0; i < n.examples; ++i)
                for (int64_t k = 0; k < layout.source; ++k) {
                  fill_plane(layout, n.large, ld, x + i * n.large.rows * n.large.ld, k, first * L, channels, plane);
                  const bool adds = i > 0 || start == Start::kAccumulate || start == Start::kContinue;
                  for (int64_t c = 0; c < ld; c += L)
                    add_taps(node, n, plane + c, layout.width, ld, dy + i * size + first * L + c,
                             dw + k * n.small.ld + first * L + c, adds);
                }
            });
  }

  // The products of one vector of channels in a plane and dy, for every tap, up to eight taps at a time.
  static void add_taps(const Node& node, const ConvShape& n, const T* plane, int64_t width, int64_t ld, const T* dy,
                       T* dw, bool adds) {
    const int64_t step = n.large_of_group * n.small.ld, blocks = (n.taps + 7) / 8;
    for (int64_t block = 0, tap = 0; block < blocks; ++block) {
      const int64_t count = (n.taps - tap) / (blocks - block);
      int64_t offset[8];
      for (int64_t t = 0; t < count; ++t, ++tap)
        offset[t] = (tap / node.kernel[1] * node.dilation[0] * width + tap % node.kernel[1] * node.dilation[1]) * ld;
      sum_taps<8>(count, node, n, plane, width, ld, offset, dy, dw + (tap - count) * step, step, adds);
    }
  }

  // Long float32 sums are folded from those of some rows.
  template <int N>
  static void sum_taps(int64_t count, const Node& node, const ConvShape& n, const T* plane, int64_t width, int64_t ld,
                       const int64_t* offset, const T* dy, T* dw, int64_t step, bool adds) {
    if constexpr (N > 1)
      if (count < N) return sum_taps<N - 1>(count, node, n, plane, width, ld, offset, dy, dw, step, adds);
    const int64_t fold = n.small.width < kDepth ? kDepth / n.small.width : 1;
    for (int64_t h0 = 0; h0 < n.small.height; h0 += fold, adds = true) {
      const int64_t h1 = h0 + fold < n.small.height ? h0 + fold : n.small.height;
      Vector<T> sum[N] = {};
      for (int64_t h = h0; h < h1; ++h) {
        const T* from = plane + h * node.stride[0] * width * ld;
        const T* g = dy + h * n.small.width * n.small.ld;
        for (int64_t w = 0; w < n.small.width; ++w, from += node.stride[1] * ld, g += n.small.ld) {
          const Vector<T> factor = load(g);
#pragma GCC unroll 8
          for (int t = 0; t < N; ++t) sum[t] += load(from + offset[t]) * factor;
        }
      }
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) store(dw + t * step, adds ? load(dw + t * step) + sum[t] : sum[t]);
    }
  }
};

template <class T>
using GroupedConv2d = Convolution<T, GroupedConvProducts<T>>;
template <class T>
using GroupedConvTranspose2d = TransposedConvolution<T, GroupedConvProducts<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
