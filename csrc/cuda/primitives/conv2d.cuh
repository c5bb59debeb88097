// Two-dimensional convolution for any kernel, stride, padding and dilation, as products over the taps. No padded copy of
// an image is made: the pixel that a tap brings is computed where it is needed, and taps outside the image bring zero:
// a zero that is multiplied, because torch's is, and NaN times zero is NaN.
//
// Tangents are the same sums with twice as many terms, so a phase makes values or, once tangents exist, tangents. Small
// products are made straight from memory, here; large ones by conv2d_staged.cuh.
#pragma once

#include "cuda/primitives/columns.cuh"
#include "cuda/primitives/weight_gradient.cuh"

namespace metafast {
namespace METAFAST_ISA {

// The row (axis 0) or column (1) of the source that a tap brings to `target`, or -1. Forward, the source is the input;
// for the adjoint, which is the input gradient, it is the output. `reach` is tap * dilation - pad.
template <bool ADJOINT>
MF_HD int32_t conv_source(int32_t target, int32_t reach, int32_t stride, int32_t size) {
  if (!ADJOINT) {
    const int32_t at = target * stride + reach;
    return at < size ? at : -1;
  }
  const int32_t spread = target - reach;
  if (stride == 1) return spread < size ? spread : -1;
  const int32_t at = int32_t(uint32_t(spread) / uint32_t(stride));
  return spread >= 0 && at * stride == spread && at < size ? at : -1;
}

// target[pixel, n] (+)= bias[n] + sum over terms, taps, k of source[pixel of the tap, k] W[tap, k, n], or for the adjoint
// W[tap, n, k].
template <class T, bool ADJOINT>
struct ConvProduct {
  const Node& node;
  const Value &from, &to;
  int64_t examples;
  int32_t ld_from, ld_to, inner, columns;  // pads of the target, from `columns`, become zero
  int32_t ld_w, tap_size;
  const T *bias = nullptr, *source[2] = {}, *w[2] = {};
  T* target;
  bool accumulate = false;
  int terms = 0;

  __device__ ConvProduct(const Frame<T>& f, const Node& its_node)
      : node(its_node),
        from(f.value(ADJOINT ? node.output : node.input[0])),
        to(f.value(ADJOINT ? node.input[0] : node.output)),
        examples(f.examples()),
        ld_from(from.ld),
        ld_to(to.ld_cotangent),
        inner(from.channels),
        columns(to.channels),
        ld_w(ADJOINT ? from.ld : to.ld),
        tap_size((ADJOINT ? to.channels : from.channels) * ld_w) {
    const bool tangent = f.tangent_tape;
    const T *weight = f.parameter(node.parameter[0]),
            *weight_dot = tangent ? f.parameter_dot(node.parameter[0]) : nullptr;
    if (ADJOINT) {
      accumulate = node.input_mode[0] == GradientMode::kAccumulate;
      target = tangent ? f.cotangent_dot(node.input[0]) : f.cotangent(node.input[0]);
      add(tangent ? f.cotangent_dot(node.output) : f.cotangent(node.output), weight);
      if (weight_dot) add(f.cotangent(node.output), weight_dot);
    } else {
      bias = tangent ? f.parameter_dot(node.parameter[1]) : f.parameter(node.parameter[1]);
      target = tangent ? f.activation_dot(node.output) : f.activation_out(node.output);
      const T* moving = tangent ? f.activation_dot(node.input[0]) : f.activation(node.input[0]);
      if (moving) add(moving, weight);
      if (weight_dot) add(f.activation(node.input[0]), weight_dot);
    }
  }

  __device__ const T* source_of(int term) const { return term == 0 ? source[0] : source[1]; }
  __device__ const T* weight_of(int term) const { return term == 0 ? w[0] : w[1]; }
  __device__ uint32_t rows() const { return uint32_t(examples * to.rows); }

 private:
  __device__ void add(const T* x, const T* weight) {
    if (terms++ == 0)
      source[0] = x, w[0] = weight;
    else
      source[1] = x, w[1] = weight;
  }
};

template <class T, bool ADJOINT, int WIDE>
static __device__ void conv_outputs(const ConvProduct<T, ADJOINT>& p, const Block& block) {
  const Node& node = p.node;
  const int32_t groups = p.ld_to / WIDE;
  block.for_each(int64_t(p.rows()) * groups, [&](uint32_t item) {
    const Divided at(item, groups), image(at.quotient, p.to.rows), row(image.rest, p.to.width);
    const int32_t h = int32_t(row.quotient), w = int32_t(row.rest), n = int32_t(at.rest) * WIDE;
    T total[WIDE];
    for (int j = 0; j < WIDE; ++j) total[j] = p.bias && n + j < p.columns ? p.bias[n + j] : T(0);
    METAFAST_ROLLED for (int term = 0; term < p.terms; ++term) {
      const T* images = p.source_of(term) + image.quotient * uint32_t(p.from.rows) * uint32_t(p.ld_from);
      const T* weight = p.weight_of(term) + n * (ADJOINT ? p.ld_w : 1);
      // Sums are folded every kProductDepth of (tap, k), those included that are zero: the order of staged.cuh.
      constexpr int32_t kDepth = int32_t(kProductDepth);
      int32_t fold = 0;
      T part[WIDE] = {};
      METAFAST_ROLLED for (int32_t kh = 0; kh < node.kernel[0]; ++kh) {
        const int32_t from_h =
            conv_source<ADJOINT>(h, kh * node.dilation[0] - node.pad[0], node.stride[0], p.from.height);
        if (ADJOINT && from_h < 0) continue;
        METAFAST_ROLLED for (int32_t kw = 0; kw < node.kernel[1]; ++kw) {
          const int32_t from_w =
              conv_source<ADJOINT>(w, kw * node.dilation[1] - node.pad[1], node.stride[1], p.from.width);
          const bool inside = from_h >= 0 && from_w >= 0;
          if (ADJOINT && !inside) continue;
          const int32_t tap = kh * node.kernel[1] + kw, begin = tap * p.inner;
          const T* left = images + (from_h * p.from.width + from_w) * p.ld_from;
          const T* right = weight + tap * p.tap_size;
          METAFAST_ROLLED for (int32_t k0 = 0, k1; k0 < p.inner; k0 = k1) {
            const int32_t now = (begin + k0) / kDepth, most = (now + 1) * kDepth - begin;
            k1 = most < p.inner ? most : p.inner;
            if (now != fold)
              for (int j = 0; j < WIDE; ++j) total[j] += part[j], part[j] = T(0);
            fold = now;
            for (int32_t k = k0; k < k1; ++k)
              for (int j = 0; j < WIDE; ++j)
                if (!ADJOINT)
                  part[j] += (inside ? left[k] : T(0)) * right[k * p.ld_w + j];
                else if (n + j < p.columns)
                  part[j] += left[k] * right[j * p.ld_w + k];
          }
        }
      }
      for (int j = 0; j < WIDE; ++j) total[j] += part[j];
    }
    T* out = p.target + at.quotient * uint32_t(p.ld_to) + n;
    for (int j = 0; j < WIDE; ++j) out[j] = p.accumulate ? out[j] + total[j] : total[j];
  });
}

template <class T, bool ADJOINT>
static __device__ void conv_product(const Frame<T>& f, const Node& node, const Block& block) {
  const ConvProduct<T, ADJOINT> p(f, node);
  if (int64_t(p.rows()) * p.ld_to >= int64_t(4) * block.threads * block.tiles)
    conv_outputs<T, ADJOINT, kDeviceLanes>(p, block);
  else
    conv_outputs<T, ADJOINT, 1>(p, block);
}

template <class T>
struct ConvForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    conv_product<T, false>(f, node, block);
  }
};

template <class T>
struct ConvInputGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    conv_product<T, true>(f, node, block);
  }
};

template <class T>
struct ConvWeightGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const WeightGradient<T> p(f, node, block);
    const uint32_t width = uint32_t(out.width), positions = uint32_t(f.rows(node.output));
    block.for_each(p.parts * int64_t(p.size / kDeviceLanes), [&](uint32_t item) {
      const Divided at(item, out.ld / kDeviceLanes), channel(at.quotient, in.channels);
      const Divided kernel(channel.quotient, node.kernel[1]), part(kernel.quotient, node.kernel[0]);
      const int32_t reach_h = int32_t(part.rest) * node.dilation[0] - node.pad[0];
      const int32_t reach_w = int32_t(kernel.rest) * node.dilation[1] - node.pad[1];
      const PartOfPositions range(positions, part.quotient, p.parts);
      T total[kDeviceLanes] = {};
      METAFAST_ROLLED for (int term = 0; term < p.terms; ++term) {
        T sum[kDeviceLanes] = {};
        uint32_t fold = range.begin + uint32_t(kProductDepth), stop;
        METAFAST_ROLLED for (uint32_t position = range.begin; position < range.end; position = stop) {
          const Divided row(position, width), image(row.quotient, out.height);
          stop = position + width - row.rest;
          if (stop > range.end) stop = range.end;
          if (stop > fold) stop = fold;
          const int32_t h = conv_source<false>(int32_t(image.rest), reach_h, node.stride[0], in.height);
          const bool inside = h >= 0;
          const T* x = p.left(term) +
                       (image.quotient * uint32_t(in.rows) + uint32_t(inside ? h * in.width : 0)) * uint32_t(in.ld) +
                       channel.rest;
          const T* dy = p.right(term) + position * uint32_t(out.ld) + at.rest * kDeviceLanes;
          int32_t w = int32_t(row.rest) * node.stride[1] + reach_w;
          for (uint32_t o = position; o < stop; ++o, w += node.stride[1], dy += out.ld) {
            const T source = inside && uint32_t(w) < uint32_t(in.width) ? x[w * in.ld] : T(0);
            const Quad<T> g = load4(dy);
            for (int j = 0; j < kDeviceLanes; ++j) sum[j] += source * g.v[j];
          }
          if (stop == fold || stop == range.end) {
            for (int j = 0; j < kDeviceLanes; ++j) total[j] += sum[j], sum[j] = T(0);
            fold += uint32_t(kProductDepth);
          }
        }
      }
      T* dw = p.to + item * kDeviceLanes;
      for (int j = 0; j < kDeviceLanes; ++j) dw[j] = p.accumulate ? dw[j] + total[j] : total[j];
    });
  }
};

// The gradient of a bias: sums of columns, in chunks and then over them.
template <class T>
struct BiasSums : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const T* dy = f.tangent_tape ? f.cotangent_dot(node.output) : f.cotangent(node.output);
    sum_chunks<1>(block, f.rows(node.output), f.value(node.output).ld, f.scratch,
                  [&](uint32_t i, uint32_t, T* sum) { sum[0] += dy[i]; });
  }
};

// In front of BatchNorm on batch statistics they are zero, as csrc/cpu/primitives/bilinear.h explains.
template <class T>
struct BiasFold : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const T* dy = f.tangent_tape ? f.cotangent_dot(node.output) : f.cotangent(node.output);
    T* db = f.tangent_tape ? f.parameter_gradient_dot(node.parameter[1]) : f.parameter_gradient(node.parameter[1]);
    const int32_t ld = f.value(node.output).ld;
    block.for_each(ld, [&](uint32_t c) {
      T total = T(0) * dy[c];
      if (!node.bias_cancels) add_chunks<1>(block, f.rows(node.output), ld, c, f.scratch, &total);
      put(db + c, total, node.parameter_mode[1]);
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
