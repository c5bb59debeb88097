// BatchNorm on batch statistics, ReLU and 2x2 max-pooling as one node; csrc/cpu/primitives/batch_norm_relu_pool.h says how
// the peaks of windows work. Statistics and folds are those of batch_norm.cuh.
#pragma once

#include "cuda/primitives/batch_norm.cuh"

namespace metafast {
namespace METAFAST_ISA {

// 2x2 windows of the input, those included that an odd image leaves incomplete: they have no output.
struct PoolShape {
  const Value &x, &y;
  int64_t examples;
  int32_t ld;
  template <class T>
  __device__ PoolShape(const Frame<T>& f, const Node& node)
      : x(f.value(node.input[0])), y(f.value(node.output)), examples(f.examples()), ld(f.value(node.output).ld) {}

  struct Window {
    uint32_t in, out, channel;  // first elements
    bool complete;              // whether there is an output
    int32_t rows, columns;      // 1 at the end of an odd image, else 2
  };

  // Calls body(window) for each complete window, or for all, and each channel.
  template <class Body>
  __device__ void for_windows(const Block& block, bool all, Body body) const {
    const int32_t height = all ? (x.height + 1) / 2 : y.height, width = all ? (x.width + 1) / 2 : y.width;
    block.for_each(examples * height * width * ld, [&](uint32_t item) {
      const Divided at(item, ld), row(at.quotient, width), image(row.quotient, height);
      const uint32_t h = image.rest, w = row.rest, in_width = uint32_t(x.width), out_width = uint32_t(y.width);
      body(Window{(image.quotient * uint32_t(x.rows) + 2 * h * in_width + 2 * w) * uint32_t(ld) + at.rest,
                  (image.quotient * uint32_t(y.rows) + h * out_width + w) * uint32_t(ld) + at.rest, at.rest,
                  h < uint32_t(y.height) && w < out_width, 2 * h + 1 < uint32_t(x.height) ? 2 : 1,
                  2 * w + 1 < in_width ? 2 : 1});
    });
  }

  // From the first element of a window to position p, in torch's order.
  __device__ uint32_t place(int p) const { return uint32_t(((p >> 1) * x.width + (p & 1)) * ld); }
};

template <class T>
struct NormPoolForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const PoolShape n(f, node);
    if (f.tangent_tape)
      tangents(f, node, n, block);
    else
      values(f, node, n, block);
  }

 private:
  static __device__ void values(const Frame<T>& f, const Node& node, const PoolShape& n, const Block& block) {
    const NormChannels<T> k(f, node);
    const typename NormChannels<T>::template Of<T> of{k};
    const T* x = f.activation(node.input[0]);
    T *y = f.activation_out(node.output), *peaks = f.tape + node.saved + 4 * n.ld;
    n.for_windows(block, false, [&](const PoolShape::Window& window) {
      const uint32_t c = window.channel;
      const T mean = of.mean(c), scale = of.scale(c), shift = of.shift(c);
      T peak = x[window.in], best = normalised(peak, mean, scale, shift);
      for (int p = 1; p < 4; ++p) {
        const T at = x[window.in + n.place(p)];
        challenge(at, normalised(at, mean, scale, shift), peak, best);
      }
      y[window.out] = opened(best);
      peaks[window.out] = peak_if_open<T>(peak, best);
    });
  }

  static __device__ void tangents(const Frame<T>& f, const Node& node, const PoolShape& n, const Block& block) {
    using S = Dual<T>;
    const NormChannels<T> k(f, node);
    const typename NormChannels<T>::template Of<S> of{k};
    const T *x = f.activation(node.input[0]), *x_dot = f.activation_dot(node.input[0]);
    const T* peaks = f.tape + node.saved + 4 * n.ld;
    T *y_dot = f.activation_dot(node.output), *peaks_dot = f.tangent_tape + node.saved_dot + 2 * n.ld;
    n.for_windows(block, false, [&](const PoolShape::Window& window) {
      const T peak = peaks[window.out];
      T moved = T(0);
      for (int p = 3; p >= 0 && x_dot; --p) {
        const uint32_t i = window.in + n.place(p);
        if (x[i] == peak) moved = x_dot[i];
      }
      peaks_dot[window.out] = moved;
      const uint32_t c = window.channel;
      const S mean = of.mean(c), scale = of.scale(c), shift = of.shift(c);
      // Where statistics are NaN so is the tangent, though the ReLU looks inactive.
      y_dot[window.out] =
          peak == peak ? normalised(S(peak, moved), mean, scale, shift).d : T(0) * (shift.d - scale.v * mean.d);
    });
  }
};

template <class T>
struct NormPoolGradientSums : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const T *dy = f.cotangent(node.output), *dy_dot = f.tangent_tape ? f.cotangent_dot(node.output) : nullptr;
    const int32_t ld = f.value(node.output).ld;
    const T* peaks = f.tape + node.saved + 4 * ld;
    const T* peaks_dot = f.activation_dot(node.output) ? f.tangent_tape + node.saved_dot + 2 * ld : nullptr;
    with_channels(f, node, [&](const auto& of, auto scalar) {
      using S = decltype(scalar);
      sum_chunks<2>(block, f.rows(node.output), ld, of.k.chunks, [&](uint32_t i, uint32_t c, T* sum) {
        if (!(peaks[i] == peaks[i])) return;
        const S g = of.at(dy, dy_dot, i);
        sum[0] += result(g);
        sum[1] += result(g * normalised(S(of.at(peaks, peaks_dot, i)), of.mean(c), of.inverse(c)));
      });
    });
  }
};

template <class T>
struct NormPoolInputGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const PoolShape n(f, node);
    const T *x = f.activation(node.input[0]), *x_dot = f.activation_dot(node.input[0]);
    const T *dy = f.cotangent(node.output), *dy_dot = f.tangent_tape ? f.cotangent_dot(node.output) : nullptr;
    const T* peaks = f.tape + node.saved + 4 * n.ld;
    T* dx = f.tangent_tape ? f.cotangent_dot(node.input[0]) : f.cotangent(node.input[0]);
    with_channels(f, node, [&](const auto& of, auto scalar) {
      using S = decltype(scalar);
      n.for_windows(block, true, [&](const PoolShape::Window& window) {
        const uint32_t c = window.channel;
        const S mean = of.mean(c), inverse = of.inverse(c), scale = of.scale(c);
        const S mean_dy = of.mean_dy(c), mean_dy_xhat = of.mean_dy_xhat(c);
        bool open = window.complete;
        const T peak = open ? peaks[window.out] : T(0);
        for (int p = 0; p < 4; ++p) {
          if ((p >> 1) >= window.rows || (p & 1) >= window.columns) continue;
          const uint32_t i = window.in + n.place(p);
          const S at = of.at(x, x_dot, i);
          const bool wins = open && x[i] == peak;
          if (wins) open = false;  // the first winner takes all
          const S g = wins ? of.at(dy, dy_dot, window.out) : S(T(0));
          const S xhat = normalised(at, mean, inverse);
          put(dx + i, result(normalised_input_gradient(g, xhat, scale, mean_dy, mean_dy_xhat)), node.input_mode[0]);
        }
      });
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
