// Large convolutions and linear layers: the products of conv2d.cuh and linear.cuh by staged.cuh. A linear layer is a
// convolution of one tap on images of one pixel. Rows of C are pixels, or for a gradient of the weight (tap, channel).
#pragma once

#include "cuda/primitives/conv2d.cuh"
#include "cuda/primitives/linear.cuh"
#include "cuda/primitives/staged.cuh"

namespace metafast {
namespace METAFAST_ISA {

// So far outside that no tap leads back into the image, and no product with a stride overflows.
constexpr int32_t kNowhere = -(1 << 20);

// The source of a convolution by target pixel and (tap, channel).
template <class T, bool ADJOINT>
struct TapSource {
  const T *data0, *data1;
  const Node& node;
  const Value &from, &to;
  uint32_t pixels, ld, channels;

  struct Pixel {
    uint32_t image;  // its first element
    int32_t h, w;    // h is kNowhere past the last pixel
  };
  struct Tap {
    int32_t reach_h, reach_w;
    uint32_t channel;
  };
  __device__ Pixel pixel(uint32_t at) const {
    const Divided image(at, to.rows), row(image.rest, to.width);
    return {image.quotient * uint32_t(from.rows) * ld, at < pixels ? int32_t(row.quotient) : kNowhere,
            int32_t(row.rest)};
  }
  __device__ Tap tap(uint32_t at) const {
    const Divided channel(at, channels), column(channel.quotient, node.kernel[1]);
    return {int32_t(column.quotient) * node.dilation[0] - node.pad[0],
            int32_t(column.rest) * node.dilation[1] - node.pad[1], channel.rest};
  }
  __device__ T load(int term, const Pixel& p, const Tap& t) const {
    const int32_t h = conv_source<ADJOINT>(p.h, t.reach_h, node.stride[0], from.height);
    const int32_t w = conv_source<ADJOINT>(p.w, t.reach_w, node.stride[1], from.width);
    if (h < 0 || w < 0) return T(0);
    return (term == 0 ? data0 : data1)[p.image + uint32_t(h * from.width + w) * ld + t.channel];
  }
};

// As the left operand of the product, or with rows and columns exchanged of that for the weight.
template <class T, bool ADJOINT>
struct SourceByPixel : TapSource<T, ADJOINT> {
  using Outer = typename TapSource<T, ADJOINT>::Pixel;
  using Inner = typename TapSource<T, ADJOINT>::Tap;
  static constexpr bool kInnerIsNear = true;
  __device__ Outer outer(uint32_t m) const { return this->pixel(m); }
  __device__ Inner inner(uint32_t k) const { return this->tap(k); }
};
template <class T>
struct SourceByTap : TapSource<T, false> {
  using Inner = typename TapSource<T, false>::Pixel;
  using Outer = typename TapSource<T, false>::Tap;
  static constexpr bool kInnerIsNear = false;
  uint32_t rows;  // taps * channels
  __device__ Outer outer(uint32_t m) const {
    Outer tap = this->tap(m);
    if (m >= rows) tap.reach_h = kNowhere;
    return tap;
  }
  __device__ Inner inner(uint32_t k) const { return this->pixel(k); }
  __device__ T load(int term, const Outer& t, const Inner& p) const { return TapSource<T, false>::load(term, p, t); }
};

// W for the adjoint, by (tap, output) and input: its rows are quads of the wrong direction.
template <class T>
struct WeightByInput {
  using Outer = uint32_t;
  struct Inner {
    uint32_t offset;
  };
  static constexpr bool kInnerIsNear = true;
  const T *data0, *data1;
  uint32_t ld, inputs, outputs;
  __device__ Outer outer(uint32_t n) const { return n; }
  __device__ Inner inner(uint32_t k) const {
    const Divided at(k, outputs);
    return {at.quotient * inputs * ld + at.rest};
  }
  __device__ T load(int term, Outer n, Inner k) const {
    return n < inputs ? (term == 0 ? data0 : data1)[k.offset + n * ld] : T(0);
  }
};

// Element (m, k) of a matrix whose neighbouring elements are neighbouring k, or else m.
template <class T, bool NEAR>
struct Matrix {
  using Outer = uint32_t;
  using Inner = uint32_t;
  static constexpr bool kInnerIsNear = NEAR;
  const T *data0, *data1;
  uint32_t ld, rows;
  __device__ Outer outer(uint32_t m) const { return m; }
  __device__ Inner inner(uint32_t k) const { return k; }
  __device__ T load(int term, Outer m, Inner k) const {
    return m < rows ? (term == 0 ? data0 : data1)[NEAR ? m * ld + k : k * ld + m] : T(0);
  }
};

// Where the tiles of C stand, columns first, so that blocks that share rows of the left operand are neighbours.
struct TileGrid {
  uint32_t m0, n0, part;
  __device__ TileGrid(const Block& block, uint32_t rows, uint32_t ld) {
    const Divided column(uint32_t(block.tile), (ld + kTileEdge - 1) / kTileEdge);
    const Divided row(column.quotient, (rows + kTileEdge - 1) / kTileEdge);
    m0 = row.rest * kTileEdge, n0 = column.rest * kTileEdge, part = row.quotient;
  }
};

template <class Form>
struct StagedPhase : PhaseDefaults {
  static constexpr int kShared = 4 * kSlice * Form::kPitch;
  static constexpr bool kPersistent = false;
  static constexpr int kBlocks = 2;
};

// Stores rows of a product of [rows][ld], pads included, which come out as zero.
template <class T>
static __device__ void put_quad(T* target, uint32_t rows, uint32_t ld, bool accumulate, uint32_t m, uint32_t n,
                                Quad<T> out) {
  if (m >= rows || n >= ld) return;
  T* to = target + m * ld + n;
  if (accumulate) {
    const Quad<T> before = load4(to);
    for (int j = 0; j < kDeviceLanes; ++j) out.v[j] += before.v[j];
  }
  store4(to, out);
}

template <class T, class Form>
struct ConvForwardBy : StagedPhase<Form> {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const ConvProduct<T, false> p(f, node);
    const uint32_t ld = uint32_t(p.ld_to), inner = uint32_t(p.inner);
    const SourceByPixel<T, false> left{
        {p.source[0], p.source[1], node, p.from, p.to, p.rows(), uint32_t(p.ld_from), inner}};
    const QuadRows<T> right{p.w[0], p.w[1], ld};
    const TileGrid at(block, p.rows(), ld);
    staged_tile<T, Form>(
        block, at.m0, at.n0, 0, uint32_t(node.kernel[0] * node.kernel[1]) * inner, p.terms, left, right, p.bias, ld,
        [&](uint32_t m, uint32_t n, const Quad<T>& out) { put_quad(p.target, p.rows(), ld, false, m, n, out); });
  }
};

template <class T, class Form>
struct ConvInputGradientBy : StagedPhase<Form> {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const ConvProduct<T, true> p(f, node);
    const uint32_t ld = uint32_t(p.ld_to), inner = uint32_t(p.inner);
    const SourceByPixel<T, true> left{
        {p.source[0], p.source[1], node, p.from, p.to, p.rows(), uint32_t(p.ld_from), inner}};
    const WeightByInput<T> right{p.w[0], p.w[1], uint32_t(p.ld_w), uint32_t(p.columns), inner};
    const TileGrid at(block, p.rows(), ld);
    staged_tile<T, Form>(block, at.m0, at.n0, 0, uint32_t(node.kernel[0] * node.kernel[1]) * inner, p.terms, left,
                         right, p.bias, ld, [&](uint32_t m, uint32_t n, const Quad<T>& out) {
                           put_quad<T>(p.target, p.rows(), ld, p.accumulate, m, n, out);
                         });
  }
};

// Positions are cut into parts, as in ConvWeightGradient.
template <class T, class Form, class Left>
static __device__ void staged_weight_gradient(const Block& block, const WeightGradient<T>& p, const Left& left,
                                              uint32_t rows, uint32_t ld, uint32_t positions) {
  const TileGrid at(block, rows, ld);
  const PartOfPositions range(positions, at.part, p.parts);
  const QuadRows<T> right{p.right(0), p.right(1), ld};
  T* to = p.to + at.part * p.size;
  staged_tile<T, Form>(
      block, at.m0, at.n0, range.begin, range.end, p.terms, left, right, static_cast<const T*>(nullptr), ld,
      [&](uint32_t m, uint32_t n, const Quad<T>& out) { put_quad<T>(to, rows, ld, p.accumulate, m, n, out); });
}

template <class T, class Form>
struct ConvWeightGradientBy : StagedPhase<Form> {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const WeightGradient<T> p(f, node, block);
    const uint32_t channels = uint32_t(in.channels), rows = uint32_t(node.kernel[0] * node.kernel[1]) * channels;
    const uint32_t positions = uint32_t(f.rows(node.output));
    const SourceByTap<T> left{{p.left(0), p.left(1), node, in, out, positions, uint32_t(in.ld), channels}, rows};
    staged_weight_gradient<T, Form>(block, p, left, rows, uint32_t(out.ld), positions);
  }
};

template <class T, class Form>
struct LinearForwardBy : StagedPhase<Form> {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const ConvProduct<T, false> p(f, node);
    const uint32_t ld = uint32_t(p.ld_to);
    const Matrix<T, true> left{p.source[0], p.source[1], uint32_t(p.ld_from), p.rows()};
    const QuadRows<T> right{p.w[0], p.w[1], ld};
    const TileGrid at(block, p.rows(), ld);
    staged_tile<T, Form>(
        block, at.m0, at.n0, 0, uint32_t(p.inner), p.terms, left, right, p.bias, ld,
        [&](uint32_t m, uint32_t n, const Quad<T>& out) { put_quad(p.target, p.rows(), ld, false, m, n, out); });
  }
};

template <class T, class Form>
struct LinearInputGradientBy : StagedPhase<Form> {
  static constexpr int kBlocks = 1;  // or registers spill
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const ConvProduct<T, true> p(f, node);
    const uint32_t ld = uint32_t(p.ld_to);
    const Matrix<T, true> left{p.source[0], p.source[1], uint32_t(p.ld_from), p.rows()};
    const Matrix<T, true> right{p.w[0], p.w[1], uint32_t(p.ld_w), uint32_t(p.columns)};
    const TileGrid at(block, p.rows(), ld);
    staged_tile<T, Form>(block, at.m0, at.n0, 0, uint32_t(p.inner), p.terms, left, right, p.bias, ld,
                         [&](uint32_t m, uint32_t n, const Quad<T>& out) {
                           put_quad<T>(p.target, p.rows(), ld, p.accumulate, m, n, out);
                         });
  }
};

template <class T, class Form>
struct LinearWeightGradientBy : StagedPhase<Form> {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const WeightGradient<T> p(f, node, block);
    const Matrix<T, false> left{p.left(0), p.left(1), uint32_t(in.ld), uint32_t(in.channels)};
    staged_weight_gradient<T, Form>(block, p, left, uint32_t(in.channels), uint32_t(out.ld),
                                    uint32_t(f.rows(node.output)));
  }
};

template <class T>
struct ConvForwardStaged : ConvForwardBy<T, PlainForm<T>> {};
template <class T>
struct ConvInputGradientStaged : ConvInputGradientBy<T, PlainForm<T>> {};
template <class T>
struct ConvWeightGradientStaged : ConvWeightGradientBy<T, PlainForm<T>> {};
template <class T>
struct LinearForwardStaged : LinearForwardBy<T, PlainForm<T>> {};
template <class T>
struct LinearInputGradientStaged : LinearInputGradientBy<T, PlainForm<T>> {};
template <class T>
struct LinearWeightGradientStaged : LinearWeightGradientBy<T, PlainForm<T>> {};

}  // namespace METAFAST_ISA
}  // namespace metafast
