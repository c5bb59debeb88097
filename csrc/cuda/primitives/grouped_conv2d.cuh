// Convolutions in groups and transposed convolutions, each thread making one element. csrc/cpu/primitives/convolution.h says
// what the large and the small image are: forward, a convolution makes the small one and a transposed one the large one.
#pragma once

#include "cuda/primitives/conv2d.cuh"
#include "program/primitives.h"

namespace metafast {
namespace METAFAST_ISA {

MF_HD bool is_transposed(const Node& node) {
  return node.op == Op::kConvTranspose2d || node.op == Op::kGroupedConvTranspose2d;
}

// Channels of a group, and the elements of a tap of the weight, which stands as [taps][large][ld].
struct Groups {
  int32_t large, small, ld, tap;
  template <class T>
  MF_HD Groups(const Frame<T>& f, const Node& node) {
    const ParameterPlan& weight = f.parameter_plan(node.parameter[0]);
    const int32_t all = f.value(is_transposed(node) ? node.output : node.input[0]).channels;
    large = weight.inputs, small = weight.outputs / (all / weight.inputs);
    ld = weight.ld, tap = large * ld;
  }
};

// The element (image, h, w, channel) of the small image for one pair of source and weight.
template <class T>
static __device__ T small_element(const Node& node, const Groups& g, const Value& large, const T* image,
                                  const T* weight, int32_t h, int32_t w, int32_t channel) {
  const T* from = image + channel / g.small * g.large;
  T total = T(0);
  METAFAST_ROLLED for (int32_t kh = 0; kh < node.kernel[0]; ++kh) {
    const int32_t from_h = conv_source<false>(h, kh * node.dilation[0] - node.pad[0], node.stride[0], large.height);
    METAFAST_ROLLED for (int32_t kw = 0; kw < node.kernel[1]; ++kw) {
      const int32_t from_w = conv_source<false>(w, kw * node.dilation[1] - node.pad[1], node.stride[1], large.width);
      const bool inside = from_h >= 0 && from_w >= 0;
      const T* left = from + (from_h * large.width + from_w) * large.ld;
      const T* right = weight + (kh * node.kernel[1] + kw) * g.tap + channel;
      T sum = T(0);
      for (int32_t k = 0; k < g.large; ++k) sum += (inside ? left[k] : T(0)) * right[k * g.ld];
      total += sum;
    }
  }
  return total;
}

// Likewise of the large image.
template <class T>
static __device__ T large_element(const Node& node, const Groups& g, const Value& small, const T* image,
                                  const T* weight, int32_t h, int32_t w, int32_t channel) {
  const int32_t first = channel / g.large * g.small, row = channel % g.large;
  T total = T(0);
  METAFAST_ROLLED for (int32_t kh = 0; kh < node.kernel[0]; ++kh) {
    const int32_t from_h = conv_source<true>(h, kh * node.dilation[0] - node.pad[0], node.stride[0], small.height);
    if (from_h < 0) continue;
    METAFAST_ROLLED for (int32_t kw = 0; kw < node.kernel[1]; ++kw) {
      const int32_t from_w = conv_source<true>(w, kw * node.dilation[1] - node.pad[1], node.stride[1], small.width);
      if (from_w < 0) continue;
      const T* left = image + (from_h * small.width + from_w) * small.ld + first;
      const T* right = weight + (kh * node.kernel[1] + kw) * g.tap + row * g.ld + first;
      T sum = T(0);
      for (int32_t k = 0; k < g.small; ++k) sum += left[k] * right[k];
      total += sum;
    }
  }
  return total;
}

// target (+)= bias + source * W, or with tangents the sum of two such products.
template <class T>
static __device__ void grouped_product(const Node& node, const Groups& g, const Block& block, bool makes_large,
                                       const Value& from, const Value& to, int64_t rows, const T* const (&source)[2],
                                       const T* const (&weight)[2], const T* bias, T* target, bool accumulate) {
  const int32_t ld = to.ld_cotangent;
  block.for_each(rows * ld, [&](uint32_t i) {
    const Divided at(i, ld), image(at.quotient, to.rows), row(image.rest, to.width);
    const int32_t h = int32_t(row.quotient), w = int32_t(row.rest), channel = int32_t(at.rest);
    const bool is_pad = channel >= to.channels;
    T total = bias && !is_pad ? bias[channel] : T(0);
    METAFAST_ROLLED for (int term = 0; term < 2 && !is_pad; ++term) {
      const T *images = term ? source[1] : source[0], *its_weight = term ? weight[1] : weight[0];
      if (!images || !its_weight) continue;
      images += image.quotient * uint32_t(from.rows) * uint32_t(from.ld);
      total += makes_large ? large_element(node, g, from, images, its_weight, h, w, channel)
                           : small_element(node, g, from, images, its_weight, h, w, channel);
    }
    target[i] = accumulate ? target[i] + total : total;
  });
}

template <class T>
struct GroupedConvForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const bool tangent = f.tangent_tape;
    const int x = node.input[0], y = node.output, w = node.parameter[0], bias = node.parameter[1];
    const T* const source[2] = {tangent ? f.activation_dot(x) : f.activation(x), tangent ? f.activation(x) : nullptr};
    const T* const weight[2] = {f.parameter(w), tangent ? f.parameter_dot(w) : nullptr};
    grouped_product(node, Groups(f, node), block, is_transposed(node), f.value(x), f.value(y), f.rows(y), source,
                    weight, tangent ? f.parameter_dot(bias) : f.parameter(bias),
                    tangent ? f.activation_dot(y) : f.activation_out(y), false);
  }
};

template <class T>
struct GroupedConvInputGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const bool tangent = f.tangent_tape;
    const int x = node.input[0], y = node.output, w = node.parameter[0];
    const T* const source[2] = {tangent ? f.cotangent_dot(y) : f.cotangent(y), tangent ? f.cotangent(y) : nullptr};
    const T* const weight[2] = {f.parameter(w), tangent ? f.parameter_dot(w) : nullptr};
    grouped_product<T>(node, Groups(f, node), block, !is_transposed(node), f.value(y), f.value(x), f.rows(x), source,
                       weight, nullptr, tangent ? f.cotangent_dot(x) : f.cotangent(x),
                       node.input_mode[0] == GradientMode::kAccumulate);
  }
};

template <class T>
struct GroupedConvWeightGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const bool transposed = is_transposed(node);
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const Value &large = transposed ? out : in, &small = transposed ? in : out;
    const WeightGradient<T> p(f, node, block);
    const Groups g(f, node);
    const uint32_t positions = uint32_t(f.examples() * small.rows);
    block.for_each(p.parts * int64_t(p.size), [&](uint32_t item) {
      const Divided at(item, g.ld), row(at.quotient, g.large), kernel(row.quotient, node.kernel[1]);
      const Divided part(kernel.quotient, node.kernel[0]);
      const int32_t channel = int32_t(at.rest), from = channel / g.small * g.large + int32_t(row.rest);
      const int32_t reach_h = int32_t(part.rest) * node.dilation[0] - node.pad[0];
      const int32_t reach_w = int32_t(kernel.rest) * node.dilation[1] - node.pad[1];
      const PartOfPositions range(positions, part.quotient, p.parts);
      const bool is_pad = channel >= small.channels;
      T total = T(0);
      METAFAST_ROLLED for (int term = 0; term < p.terms && !is_pad; ++term) {
        const T* larges = transposed ? p.right(term) : p.left(term);
        const T* smalls = transposed ? p.left(term) : p.right(term);
        METAFAST_ROLLED for (uint32_t begin = range.begin; begin < range.end; begin += uint32_t(kProductDepth)) {
          const uint32_t stop = begin + uint32_t(kProductDepth);
          T sum = T(0);  // long sums are folded from short ones
          for (uint32_t o = begin; o < stop && o < range.end; ++o) {
            const Divided pixel(o, small.width), image(pixel.quotient, small.height);
            const int32_t h = conv_source<false>(int32_t(image.rest), reach_h, node.stride[0], large.height);
            const int32_t w = conv_source<false>(int32_t(pixel.rest), reach_w, node.stride[1], large.width);
            const uint32_t place = image.quotient * uint32_t(large.rows) + uint32_t(h * large.width + w);
            const T source = h >= 0 && w >= 0 ? larges[place * uint32_t(large.ld) + uint32_t(from)] : T(0);
            sum += source * smalls[o * uint32_t(small.ld) + uint32_t(channel)];
          }
          total += sum;
        }
      }
      p.to[item] = p.accumulate ? p.to[item] + total : total;
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
