// Problem: a 3x3 convolution with unit stride and many channels spends nine multiplications per input channel, output
//   channel and pixel; it is the whole cost of a few-shot image network.
// Solution: Winograd's F(2x2, 3x3) (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016): four,
//       Y = A' [ sum over channels  (G g G') (B' d B) ] A,
//   where d is a 4x4 patch of the input, Y the 2x2 outputs it gives, and the product in brackets is elementwise: 16
//   independent matrix products [tiles, inputs] x [inputs, outputs], made by cpu/kernels/gemm.h. All is linear, so the weight
//   gradient is its adjoint,  dg = G' [ sum over tiles (B' d B) (A dY A') ] G,  and the input gradient is the same
//   convolution with flipped, transposed weights; flipping g swaps rows 0 and 3 and columns 0 and 3 of G g G'.
// Memory: kTiles tiles at a time, so that their transforms and the weights' stay in the second-level cache. The 16
//   slices lie off a power of two apart: else all stores of one tile would fall on the same few cache sets.
// Rounding: the transforms of data only add, those of weights multiply by 1/2 and 1/4, and the sums are shorter. Measured
//   against float64 on 14x14x64, 5 and 75 images, the float32 error is 0.4 to 0.6 of the direct product's, that of the
//   weight gradient 0.6 to 1.3 (each block's sum is begun anew: one long sum was eight times worse).
// Tangents: x' * g + x * g' is one sum of two terms in the transformed domain, so either product takes several terms and
//   transforms its result once.
// Usage: transform_weights(g, ..., u); Winograd<T> n{shapes, share}; n.product({{x, u}, {more, terms}}, y, start, bias);
//   n.weight_gradient({{x, dy}, ...}, dw, start). winograd_scratch of core/plan.h says how much scratch; all leading
//   dimensions are whole vectors.
#pragma once

#include <string.h>

#include "cpu/kernels/transpose.h"
#include "cpu/threads/share.h"

namespace metafast {
namespace METAFAST_ISA {

// r_i = B' applied to four values: the input transform along one axis.
template <class V>
static inline __attribute__((always_inline)) void input_transform(V& a, V& b, V& c, V& d) {
  const V a0 = a - c, b0 = b + c, c0 = c - b, d0 = b - d;
  a = a0, b = b0, c = c0, d = d0;
}

// Elements begin .. end of each slice of w, [9][slice], to G g G', [16][slice].
template <class T>
static void transform_weights(const T* w, int64_t slice, int64_t begin, int64_t end, T* u) {
  constexpr int L = kLanes<T>;
  for (int64_t i = begin; i < end; i += L) {
    Vector<T> rows[4][3];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      const Vector<T> a = load(w + j * slice + i), b = load(w + (3 + j) * slice + i), c = load(w + (6 + j) * slice + i);
      const Vector<T> half = T(0.5) * (a + c);
      rows[0][j] = a, rows[1][j] = half + T(0.5) * b, rows[2][j] = half - T(0.5) * b, rows[3][j] = c;
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const Vector<T> half = T(0.5) * (rows[r][0] + rows[r][2]);
      T* out = u + 4 * r * slice + i;
      store(out, rows[r][0]);
      store(out + slice, half + T(0.5) * rows[r][1]);
      store(out + 2 * slice, half - T(0.5) * rows[r][1]);
      store(out + 3 * slice, rows[r][2]);
    }
  }
}

// The adjoint: dg (+)= G' u G.
template <class T>
static void transform_weight_gradient(const T* u, int64_t slice, int64_t begin, int64_t end, T* dw, bool accumulate) {
  constexpr int L = kLanes<T>;
  for (int64_t i = begin; i < end; i += L) {
    Vector<T> rows[3][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const T* from = u + j * slice + i;
      const Vector<T> b = load(from + 4 * slice), c = load(from + 8 * slice), half = T(0.5) * (b + c);
      rows[0][j] = load(from) + half, rows[1][j] = T(0.5) * (b - c), rows[2][j] = half + load(from + 12 * slice);
    }
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r) {
      const Vector<T> half = T(0.5) * (rows[r][1] + rows[r][2]);
      const Vector<T> taps[3] = {rows[r][0] + half, T(0.5) * (rows[r][1] - rows[r][2]), half + rows[r][3]};
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        T* out = dw + (3 * r + j) * slice + i;
        store(out, accumulate ? load(out) + taps[j] : taps[j]);
      }
    }
  }
}

// Slices begin .. end of those of the input gradient, [16][outputs][ld_inputs], from transformed weights [16][inputs][ld].
template <class T>
static void flip_weights(const T* u, int64_t inputs, int64_t ld, int64_t outputs, int64_t ld_inputs, int64_t begin,
                         int64_t end, T* flipped) {
  constexpr int kMirror[4] = {3, 1, 2, 0};
  for (int64_t s = begin; s < end; ++s)
    transpose(u + (4 * kMirror[s / 4] + kMirror[s % 4]) * inputs * ld, ld, inputs, outputs,
              flipped + s * outputs * ld_inputs, ld_inputs);
}

template <class T>
struct Winograd {
  int64_t images;
  int64_t height, width, channels, ld;    // of what is convolved
  int64_t out_height, out_width, out_ld;  // of the result
  int64_t top, left;                      // zero padding
  const Sharing<T>& share;

  static constexpr int64_t kTiles = kWinogradTiles, kPad = 64 / int64_t(sizeof(T));

  int64_t tiles_high() const { return (out_height + 1) / 2; }
  int64_t tiles_wide() const { return (out_width + 1) / 2; }
  int64_t tiles() const { return images * tiles_high() * tiles_wide(); }

  // Two arrays whose product counts: x and transformed weights, or x and dy. Absent where the first is null.
  struct Term {
    const T *x, *by;
  };

  // y (=, = bias +, +=) sum of x * g over terms (x, transformed g).
  void product(const Term (&terms)[2], T* y, Start start, const T* bias) const {
    share(tiles(), 16 * channels * out_ld, [&](int64_t some, int64_t more, T* scratch) {
      const Parts p(*this, scratch);
      for_blocks(some, more, [&](int64_t begin, int64_t end) {
        Start first = Start::kZero;
        for (const Term& term : terms) {
          if (!term.x) continue;
          gather_inputs(term.x, begin, end, 0, ld, p);
          for (int s = 0; s < 16; ++s)
            multiply<T>({p.inputs + s * p.input_slice, nullptr, nullptr, int32_t(ld), 1},
                        term.by + s * channels * out_ld, out_ld, p.outputs + s * p.output_slice, out_ld, end - begin,
                        out_ld, channels, first);
          first = Start::kAccumulate;
        }
        if (first == Start::kZero) memset(p.outputs, 0, size_t(16 * p.output_slice) * sizeof(T));  // no terms
        scatter_outputs(p, begin, end, y, start, bias);
      });
    });
  }

  // dw (=, +=) the sum of weight gradients over terms (x, dy), [9][channels][out_ld].
  // Parts are input channels: the sums over tiles must have their order, and cotangents, transformed once by each
  // part, are the smaller half of what there is to do.
  void weight_gradient(const Term (&terms)[2], T* dw, Start start) const {
    constexpr int64_t L = kLanes<T>;
    share(ld / L, 16 * L * out_ld * tiles(), [&](int64_t some, int64_t more, T* scratch) {
      const Parts p(*this, scratch);
      const int64_t from = some * L, to = more * L < channels ? more * L : channels;
      Start first = Start::kZero;
      for_blocks(0, tiles(), [&](int64_t begin, int64_t end) {
        for (const Term& term : terms) {
          if (!term.x) continue;
          gather_inputs(term.x, begin, end, from, more * L, p);
          gather_cotangents(term.by, begin, end, p);
          for (int s = 0; s < 16; ++s)
            multiply<T>({p.inputs + s * p.input_slice + from, nullptr, nullptr, 1, int32_t(ld)},
                        p.outputs + s * p.output_slice, out_ld, p.weights + (s * channels + from) * out_ld, out_ld,
                        to - from, out_ld, end - begin, first);
          first = Start::kAccumulate;
        }
      });
      transform_weight_gradient(p.weights, channels * out_ld, from * out_ld, to * out_ld, dw,
                                start == Start::kAccumulate);
    });
  }

 private:
  // Where things stand in the scratch.
  struct Parts {
    int64_t input_slice, output_slice;
    T *zeros, *dump, *inputs, *outputs, *weights;
    Parts(const Winograd& n, T* scratch) : input_slice(kTiles * n.ld + kPad), output_slice(kTiles * n.out_ld + kPad) {
      const int64_t wide = n.ld > n.out_ld ? n.ld : n.out_ld;
      zeros = scratch, dump = zeros + wide, inputs = dump + wide;
      outputs = inputs + 16 * input_slice, weights = outputs + 16 * output_slice;
      memset(zeros, 0, size_t(2 * wide) * sizeof(T));
    }
  };

  // Tiles begin .. end in blocks of nearly equal size.
  template <class Body>
  void for_blocks(int64_t begin, int64_t end, Body body) const {
    const int64_t total = end - begin, blocks = (total + kTiles - 1) / kTiles;
    for (int64_t b = 0; b < blocks; ++b) body(begin + b * total / blocks, begin + (b + 1) * total / blocks);
  }

  // Calls body(image, tile's row, tile's column) for tiles begin .. end.
  template <class Body>
  void for_tiles(int64_t begin, int64_t end, Body body) const {
    const int64_t wide = tiles_wide(), high = tiles_high();
    int64_t column = begin % wide, row = begin / wide % high, image = begin / wide / high;
    for (int64_t t = begin; t < end; ++t) {
      body(image, row, column);
      if (++column == wide) {
        column = 0;
        if (++row == high) row = 0, ++image;
      }
    }
  }

  // B' d B of each tile, of some channels. What lies outside the image is read from zeros.
  void gather_inputs(const T* x, int64_t begin, int64_t end, int64_t from_channel, int64_t to_channel,
                     const Parts& p) const {
    constexpr int L = kLanes<T>;
    T* out = p.inputs;
    for_tiles(begin, end, [&](int64_t image, int64_t row, int64_t column) {
      const T* from[16];
      for (int64_t i = 0; i < 4; ++i)
        for (int64_t j = 0; j < 4; ++j) {
          const int64_t h = 2 * row - top + i, w = 2 * column - left + j;
          const bool inside = h >= 0 && h < height && w >= 0 && w < width;
          from[4 * i + j] = inside ? x + ((image * height + h) * width + w) * ld : p.zeros;
        }
      for (int64_t c = from_channel; c < to_channel; c += L) {
        Vector<T> d[16];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) d[4 * i + j] = load(from[4 * i + j] + c);
          if (j >= 2) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) prefetch(from[4 * i + j] + c, 4 * ld);
          }
          input_transform(d[j], d[4 + j], d[8 + j], d[12 + j]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          input_transform(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) store(out + (4 * i + j) * p.input_slice + c, d[4 * i + j]);
        }
      }
      out += ld;
    });
  }

  // A dY A' of each tile.
  void gather_cotangents(const T* dy, int64_t begin, int64_t end, const Parts& p) const {
    constexpr int L = kLanes<T>;
    T* out = p.outputs;
    for_tiles(begin, end, [&](int64_t image, int64_t row, int64_t column) {
      const T* from[4];
      for (int64_t i = 0; i < 2; ++i)
        for (int64_t j = 0; j < 2; ++j) {
          const int64_t h = 2 * row + i, w = 2 * column + j;
          from[2 * i + j] =
              h < out_height && w < out_width ? dy + ((image * out_height + h) * out_width + w) * out_ld : p.zeros;
        }
      for (int64_t c = 0; c < out_ld; c += L) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) prefetch(from[i] + c, 4 * out_ld);
        const Vector<T> a0 = load(from[0] + c), b0 = load(from[1] + c), a3 = load(from[2] + c), b3 = load(from[3] + c);
        const Vector<T> left_column[4] = {a0, a0 + a3, a0 - a3, -a3}, right_column[4] = {b0, b0 + b3, b0 - b3, -b3};
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          T* to = out + 4 * i * p.output_slice + c;
          store(to, left_column[i]);
          store(to + p.output_slice, left_column[i] + right_column[i]);
          store(to + 2 * p.output_slice, left_column[i] - right_column[i]);
          store(to + 3 * p.output_slice, -right_column[i]);
        }
      }
      out += out_ld;
    });
  }

  // Y = A' m A of each tile. What falls outside the image goes to the dump.
  void scatter_outputs(const Parts& p, int64_t begin, int64_t end, T* y, Start start, const T* bias) const {
    constexpr int L = kLanes<T>;
    const T* m = p.outputs;
    for_tiles(begin, end, [&](int64_t image, int64_t row, int64_t column) {
      T* to[4];
      for (int64_t i = 0; i < 2; ++i)
        for (int64_t j = 0; j < 2; ++j) {
          const int64_t h = 2 * row + i, w = 2 * column + j;
          to[2 * i + j] =
              h < out_height && w < out_width ? y + ((image * out_height + h) * out_width + w) * out_ld : p.dump;
        }
      for (int64_t c = 0; c < out_ld; c += L) {
        Vector<T> upper[4], lower[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const T* from = m + j * p.output_slice + c;
          const Vector<T> b = load(from + 4 * p.output_slice), d = load(from + 8 * p.output_slice);
          upper[j] = load(from) + b + d;
          lower[j] = b - d - load(from + 12 * p.output_slice);
        }
        const Vector<T> result[4] = {upper[0] + upper[1] + upper[2], upper[1] - upper[2] - upper[3],
                                     lower[0] + lower[1] + lower[2], lower[1] - lower[2] - lower[3]};
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          prefetch(to[i] + c, 4 * out_ld);
          const Vector<T> before = start == Start::kAccumulate ? load(to[i] + c)
                                   : start == Start::kBias     ? load(bias + c)
                                                               : Vector<T>{};
          store(to[i] + c, before + result[i]);
        }
      }
      m += out_ld;
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
