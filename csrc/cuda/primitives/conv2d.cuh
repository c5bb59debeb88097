// Two-dimensional convolution for any kernel, stride, padding and dilation, as products over the taps. No padded copy of
// an image is made: the pixel that a tap brings is computed where it is needed, and taps outside the image are left out.
//
// Tangents are the same sums with twice as many terms, so a phase makes values or, once tangents exist, tangents.
#pragma once

#include "columns.cuh"
#include "product.cuh"

namespace metafast {
namespace METAFAST_ISA {

// The row (axis 0) or column (1) of the source that tap `tap` brings to `target`; negative if there is none. Forward,
// the source is the input. For the adjoint, the input gradient, it is the output.
template <bool ADJOINT>
MF_HD int32_t conv_source(const Step& s, int axis, int32_t target, int32_t tap, int32_t size) {
  const int32_t stride = s.stride[axis], reach = tap * s.dilation[axis] - s.pad[axis];
  if (!ADJOINT) {
    const int32_t at = target * stride + reach;
    return at < size ? at : -1;
  }
  const int32_t spread = target - reach, at = spread / stride;
  return spread >= 0 && at * stride == spread && at < size ? at : -1;
}

// target[pixel, n] (+)= bias[n] + sum over terms, taps, k of source[pixel of the tap, k] W[tap, k, n], or for the adjoint
// W[tap, n, k].
template <class T>
struct ConvProduct {
  const T *source[2], *w[2];
  int terms;
  const T* bias;
  T* target;
  const Value &from, &to;
  int64_t examples, ld_source, ld_target, columns, inner;  // pads of the target, from `columns`, become zero
  int64_t tap_size, ld_w;
  bool accumulate;

  MF_HD void add(const T* x, const T* weight) {
    source[terms] = x;
    w[terms++] = weight;
  }
};

template <class T, bool ADJOINT, int WIDE>
static __device__ void conv_outputs(const ConvProduct<T>& p, const Step& s, const Block& block) {
  const int64_t groups = p.ld_target / WIDE;
  block.for_each(p.examples * p.to.rows * groups, [&](int64_t item) {
    const Divided at(item, groups), image(at.quotient, p.to.rows), row(image.rest, p.to.width);
    const int32_t h = int32_t(row.quotient), w = int32_t(row.rest);
    const int64_t n = at.rest * WIDE;
    const int valid = p.columns - n < WIDE ? int(p.columns - n) : WIDE;
    T total[WIDE];
    for (int j = 0; j < WIDE; ++j) total[j] = p.bias && j < valid ? p.bias[n + j] : T(0);
    for (int term = 0; term < p.terms; ++term) {
      for (int32_t kh = 0; kh < s.kernel[0]; ++kh) {
        const int32_t from_h = conv_source<ADJOINT>(s, 0, h, kh, p.from.height);
        if (from_h < 0) continue;
        for (int32_t kw = 0; kw < s.kernel[1]; ++kw) {
          const int32_t from_w = conv_source<ADJOINT>(s, 1, w, kw, p.from.width);
          if (from_w < 0) continue;
          const T* left =
              p.source[term] + (image.quotient * p.from.rows + int64_t(from_h) * p.from.width + from_w) * p.ld_source;
          const T* right = p.w[term] + (int64_t(kh) * s.kernel[1] + kw) * p.tap_size + n * (ADJOINT ? p.ld_w : 1);
          for (int64_t k0 = 0; k0 < p.inner; k0 += kProductDepth) {
            const int64_t k1 = k0 + kProductDepth < p.inner ? k0 + kProductDepth : p.inner;
            T part[WIDE] = {};
            for (int64_t k = k0; k < k1; ++k)
              for (int j = 0; j < WIDE; ++j)
                if (!ADJOINT)
                  part[j] += left[k] * right[k * p.ld_w + j];
                else if (j < valid)
                  part[j] += left[k] * right[j * p.ld_w + k];
            for (int j = 0; j < WIDE; ++j) total[j] += part[j];
          }
        }
      }
    }
    T* out = p.target + at.quotient * p.ld_target + n;
    for (int j = 0; j < WIDE; ++j) out[j] = p.accumulate ? out[j] + total[j] : total[j];
  });
}

template <class T, bool ADJOINT>
static __device__ void conv_product(const ConvProduct<T>& p, const Step& s, const Block& block) {
  if (p.examples * p.to.rows * p.ld_target >= int64_t(4) * block.threads * block.tiles)
    conv_outputs<T, ADJOINT, kDeviceLanes>(p, s, block);
  else
    conv_outputs<T, ADJOINT, 1>(p, s, block);
}

template <class T>
static __device__ ConvProduct<T> conv_forward(const Frame<T>& f, const Step& s) {
  const Value &in = f.value(s.input[0]), &out = f.value(s.output);
  const bool tangent = f.tangent_tape;
  const T *x = f.activation(s.input[0]), *w = f.parameter(s.parameter[0]);
  ConvProduct<T> p{{},
                   {},
                   0,
                   tangent ? f.parameter_dot(s.parameter[1]) : f.parameter(s.parameter[1]),
                   tangent ? f.activation_dot(s.output) : f.activation_out(s.output),
                   in,
                   out,
                   f.examples(),
                   in.ld,
                   out.ld,
                   out.ld,
                   in.channels,
                   int64_t(in.channels) * out.ld,
                   out.ld,
                   false};
  if (!tangent) {
    p.add(x, w);
  } else {
    if (const T* x_dot = f.activation_dot(s.input[0])) p.add(x_dot, w);
    if (const T* w_dot = f.parameter_dot(s.parameter[0])) p.add(x, w_dot);
  }
  return p;
}

template <class T>
static __device__ ConvProduct<T> conv_input_gradient(const Frame<T>& f, const Step& s) {
  const Value &in = f.value(s.input[0]), &out = f.value(s.output);
  const bool tangent = f.tangent_tape;
  const T *dy = f.cotangent(s.output), *w = f.parameter(s.parameter[0]);
  ConvProduct<T> p{{},
                   {},
                   0,
                   nullptr,
                   tangent ? f.cotangent_dot(s.input[0]) : f.cotangent(s.input[0]),
                   out,
                   in,
                   f.examples(),
                   out.ld,
                   in.cold,
                   in.channels,
                   out.channels,
                   int64_t(in.channels) * out.ld,
                   out.ld,
                   s.input_mode[0] == GradientMode::kAccumulate};
  p.add(tangent ? f.cotangent_dot(s.output) : dy, w);
  if (tangent)
    if (const T* w_dot = f.parameter_dot(s.parameter[0])) p.add(dy, w_dot);
  return p;
}

template <class T>
struct ConvForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Step& s, const Block& block) {
    conv_product<T, false>(conv_forward(f, s), s, block);
  }
};

template <class T>
struct ConvInputGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Step& s, const Block& block) {
    conv_product<T, true>(conv_input_gradient(f, s), s, block);
  }
};

// What a gradient of the weight is a sum of: x dy, or for the tangent x dy' + x' dy.
template <class T>
struct ConvWeightTerms {
  const T *x[2], *dy[2];
  int terms = 0;
  __device__ ConvWeightTerms(const Frame<T>& f, const Step& s) {
    const T *a = f.activation(s.input[0]), *g = f.cotangent(s.output);
    const bool tangent = f.tangent_tape;
    add(a, tangent ? f.cotangent_dot(s.output) : g);
    if (const T* a_dot = f.activation_dot(s.input[0])) add(a_dot, g);
  }

 private:
  __device__ void add(const T* a, const T* g) {
    x[terms] = a;
    dy[terms++] = g;
  }
};

// Rows of output images are cut into as many parts as the argument says. If it is 1 this is the gradient; else each part
// goes to scratch, and ConvWeightFold adds them.
template <class T>
struct ConvWeightGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Step& s, const Block& block) {
    const Value &in = f.value(s.input[0]), &out = f.value(s.output);
    const ConvWeightTerms<T> terms(f, s);
    const int32_t parts = block.argument;
    const int64_t size = f.parameter_plan(s.parameter[0]).size, groups = out.ld / kDeviceLanes;
    const int64_t image_rows = f.examples() * out.height;
    const bool accumulate = parts == 1 && s.parameter_mode[0] == GradientMode::kAccumulate;
    T* to = parts > 1                   ? f.scratch
            : f.tangent_tape != nullptr ? f.parameter_gradient_dot(s.parameter[0])
                                        : f.parameter_gradient(s.parameter[0]);
    block.for_each(parts * (size / kDeviceLanes), [&](int64_t item) {
      const Divided at(item, groups), channel(at.quotient, in.channels), kernel(channel.quotient, s.kernel[1]);
      const Divided part(kernel.quotient, s.kernel[0]);
      const int32_t kh = int32_t(part.rest), kw = int32_t(kernel.rest);
      const int64_t begin = image_rows * part.quotient / parts, end = image_rows * (part.quotient + 1) / parts;
      const int64_t n = at.rest * kDeviceLanes;
      // The output columns that this tap brings something to: all, but for some at the ends.
      int32_t left = 0, right = out.width;
      while (left < right && conv_source<false>(s, 1, left, kw, in.width) < 0) ++left;
      while (left < right && conv_source<false>(s, 1, right - 1, kw, in.width) < 0) --right;
      T total[kDeviceLanes] = {};
      for (int term = 0; term < terms.terms; ++term)
        for (int64_t r = begin; r < end && left < right; ++r) {
          const Divided image(r, out.height);
          const int32_t h = conv_source<false>(s, 0, int32_t(image.rest), kh, in.height);
          if (h < 0) continue;
          const int32_t w = conv_source<false>(s, 1, left, kw, in.width);
          const T* x = terms.x[term] + (image.quotient * in.rows + int64_t(h) * in.width + w) * in.ld + channel.rest;
          const T* dy = terms.dy[term] + (r * out.width + left) * out.ld + n;
          T sum[kDeviceLanes] = {};
          for (int32_t o = left; o < right; ++o, x += int64_t(s.stride[1]) * in.ld, dy += out.ld) {
            const Quad<T> g = load4(dy);
            for (int j = 0; j < kDeviceLanes; ++j) sum[j] += *x * g.v[j];
          }
          for (int j = 0; j < kDeviceLanes; ++j) total[j] += sum[j];
        }
      T* dw = to + item * kDeviceLanes;
      for (int j = 0; j < kDeviceLanes; ++j) dw[j] = accumulate ? dw[j] + total[j] : total[j];
    });
  }
};

template <class T>
struct ConvWeightFold : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Step& s, const Block& block) {
    const int64_t size = f.parameter_plan(s.parameter[0]).size;
    T* dw = f.tangent_tape ? f.parameter_gradient_dot(s.parameter[0]) : f.parameter_gradient(s.parameter[0]);
    block.for_each(size, [&](int64_t i) {
      T total = T(0);
      for (int32_t part = 0; part < block.argument; ++part) total += f.scratch[part * size + i];
      put(dw + i, total, s.parameter_mode[0]);
    });
  }
};

// The gradient of a bias: sums of columns, in chunks and then over them.
template <class T>
struct BiasSums : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Step& s, const Block& block) {
    const T* dy = f.tangent_tape ? f.cotangent_dot(s.output) : f.cotangent(s.output);
    sum_chunks<1>(block, f.rows(s.output), f.value(s.output).ld, f.scratch,
                  [&](int64_t i, int64_t, T* sum) { sum[0] += dy[i]; });
  }
};

// In front of BatchNorm on batch statistics they are zero, as csrc/primitives/bilinear.h explains.
template <class T>
struct BiasFold : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Step& s, const Block& block) {
    const T* dy = f.tangent_tape ? f.cotangent_dot(s.output) : f.cotangent(s.output);
    T* db = f.tangent_tape ? f.parameter_gradient_dot(s.parameter[1]) : f.parameter_gradient(s.parameter[1]);
    const int64_t ld = f.value(s.output).ld;
    block.for_each(ld, [&](int64_t c) {
      T total = T(0) * dy[c];
      if (!s.bias_cancels) add_chunks<1>(block, f.rows(s.output), ld, c, f.scratch, &total);
      put(db + c, total, s.parameter_mode[1]);
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
