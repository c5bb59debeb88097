// BatchNorm on batch statistics, ReLU and 2x2 max-pooling as one node: the block of most few-shot image networks.
//
// One after the other they write and read five arrays of the image's full size, and memory is slower than arithmetic.
// Here the image-sized arrays are the input x, its cotangent and their tangents, nothing else. Of each window and
// channel the tape keeps the winning x, the `peak`; it is NaN where the ReLU is inactive, so that comparing x with it finds
// the winner and the mask at once: a NaN equals nothing. (Where data is NaN, so are the statistics of its whole channel,
// and they carry it on.) Sums over cotangents, which vanish off the winners, then run over pooled arrays only.
//
// With inverse = 1 / deviation, scale = gamma inverse, g the cotangent at a winner and 0 elsewhere, and averages <.>
// over examples and positions,
//   dx = scale (g - <g> - xhat <g xhat>) = scale g + a + b (x - mean),   a = -scale <g>,   b = -scale inverse <g xhat>.
#pragma once

#include "cpu/primitives/batch_norm.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct BatchNormReluPool {
  using V = Vector<T>;
  using Norm = BatchNorm<T>;
  using Saved = typename Norm::Saved;
  static constexpr int L = kLanes<T>;

  static void forward(const Frame<T>& f, const Node& node) {
    const Saved k(f, node);
    const Shape n(f, node);
    const T* x = f.activation(node.input[0]);
    Norm::batch_statistics(f, node, x, n.ld, n.rows, k);
    const T *gamma = f.parameter(node.parameter[0]), *beta = f.parameter(node.parameter[1]);
    T *scale = f.scratch, *shift = scale + n.ld;
    for (int64_t c = 0; c < n.ld; ++c) {
      scale[c] = gamma ? gamma[c] * k.inverse_deviation[c] : k.inverse_deviation[c];
      shift[c] = beta ? beta[c] : T(0);
    }
    T *y = f.activation_out(node.output), *peaks = f.tape + node.saved + 4 * n.ld;
    n.for_windows(f, [=](int64_t in, int64_t out) {
      for (int64_t c = 0; c < n.ld; c += L) {
        const V mean = load(k.mean + c), by = load(scale + c), plus = load(shift + c);
        V peak = load(x + in + c), best = normalised(peak, mean, by, plus);
#pragma GCC unroll 4
        for (int p = 1; p < 4; ++p) {
          const V at = load(x + in + n.place(p) + c);
          challenge(at, normalised(at, mean, by, plus), peak, best);
        }
        store(y + out + c, opened(best));
        store(peaks + out + c, peak_if_open<T>(peak, best));
      }
    });
  }

  static void backward(const Frame<T>& f, const Node& node) {
    const Saved k(f, node);
    const Shape n(f, node);
    const T *dy = f.cotangent(node.output), *peaks = f.tape + node.saved + 4 * n.ld;
    column_reduce<T, 2>(f, n.ld, n.pooled_rows, {k.mean_dy, k.mean_dy_xhat}, [=](int64_t i, int64_t c, V* sum) {
      const V peak = load(peaks + i), g = load(dy + i);
      const V xhat = (peak - load(k.mean + c)) * load(k.inverse_deviation + c);
      sum[0] += peak == peak ? g : V{};
      sum[1] += peak == peak ? g * xhat : V{};
    });
    for (int64_t c = 0; c < n.ld; ++c) {
      const T nan = T(0) * k.inverse_deviation[c];
      k.mean_dy[c] += nan, k.mean_dy_xhat[c] += nan;
    }
    Norm::put_sums(f, node, n.ld, k.mean_dy_xhat, k.mean_dy, f.gradient);
    for (int64_t c = 0; c < n.ld; ++c) k.mean_dy[c] /= T(n.rows), k.mean_dy_xhat[c] /= T(n.rows);
    if (!wanted(node.input_mode[0])) return;

    const T* gamma = f.parameter(node.parameter[0]);
    T *scale = f.scratch, *a = scale + n.ld, *b = a + n.ld;
    for (int64_t c = 0; c < n.ld; ++c) {
      const T inverse = k.inverse_deviation[c];
      scale[c] = gamma ? gamma[c] * inverse : inverse;
      a[c] = -scale[c] * k.mean_dy[c], b[c] = -scale[c] * inverse * k.mean_dy_xhat[c];
    }
    const T* x = f.activation(node.input[0]);
    T* dx = f.cotangent(node.input[0]);  // may be where x is
    const bool accumulate = node.input_mode[0] == GradientMode::kAccumulate;
    n.for_windows(f, [=](int64_t in, int64_t out) {
      for (int64_t c = 0; c < n.ld; c += L) {
        const V mean = load(k.mean + c), plus = load(a + c), by = load(b + c), peak = load(peaks + out + c);
        V g = load(scale + c) * load(dy + out + c);
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) {
          const int64_t i = in + n.place(p) + c;
          const V at = load(x + i);
          const V d = plus + by * (at - mean) + (at == peak ? g : V{});
          g = at == peak ? V{} : g;  // the first winner takes all
          store(dx + i, accumulate ? load(dx + i) + d : d);
        }
      }
    });
    n.for_rest([&](int64_t in) {
      for (int64_t c = 0; c < n.ld; c += L) {
        const V d = load(a + c) + load(b + c) * (load(x + in + c) - load(k.mean + c));
        store(dx + in + c, accumulate ? load(dx + in + c) + d : d);
      }
    });
  }

  static void tangent_forward(const Frame<T>& f, const Node& node) {
    T* y_dot = f.activation_dot(node.output);
    if (!y_dot) return;
    const Saved k(f, node);
    const Shape n(f, node);
    const T *x = f.activation(node.input[0]), *x_dot = f.activation_dot(node.input[0]);
    const T* peaks = f.tape + node.saved + 4 * n.ld;
    T* peaks_dot = f.tangent_tape + node.saved_dot + 2 * n.ld;
    Norm::batch_statistics_tangent(f, x, x_dot, n.ld, n.rows, k);
    T *scale = f.scratch, *scale_dot = scale + n.ld, *shift = scale_dot + n.ld;
    Norm::tangent_coefficients(f, node, n.ld, k, scale, scale_dot, shift);
    n.for_windows(f, [=](int64_t in, int64_t out) {
      for (int64_t c = 0; c < n.ld; c += L) {
        const V peak = load(peaks + out + c);
        V d{};
        if (x_dot) {
#pragma GCC unroll 4
          for (int p = 3; p >= 0; --p) {
            const int64_t i = in + n.place(p) + c;
            d = load(x + i) == peak ? load(x_dot + i) : d;
          }
        }
        const V z = load(scale + c) * d + load(scale_dot + c) * (peak - load(k.mean + c)) + load(shift + c);
        store(peaks_dot + out + c, d);
        // Where statistics are NaN so is the shift, though the ReLU looks inactive.
        store(y_dot + out + c, peak == peak ? z : T(0) * load(shift + c));
      }
    });
  }

  static void tangent_backward(const Frame<T>& f, const Node& node) {
    const Saved k(f, node);
    const Shape n(f, node);
    const T *dy = f.cotangent(node.output), *dy_dot = f.cotangent_dot(node.output);
    const T* peaks = f.tape + node.saved + 4 * n.ld;
    const T* peaks_dot = f.activation_dot(node.output) ? f.tangent_tape + node.saved_dot + 2 * n.ld : nullptr;
    if (!peaks_dot)  // tangent_forward had nothing to do here
      for (int64_t c = 0; c < n.ld; ++c) k.mean_dot[c] = k.inverse_deviation_dot[c] = T(0);

    T *sum_dot = f.scratch, *sum_xhat_dot = sum_dot + n.ld;
    column_reduce<T, 2>(f, n.ld, n.pooled_rows, {sum_dot, sum_xhat_dot}, [=](int64_t i, int64_t c, V* sum) {
      const V peak = load(peaks + i), g_dot = load(dy_dot + i);
      const V centred = peak - load(k.mean + c), inverse = load(k.inverse_deviation + c);
      const V moved = (peaks_dot ? load(peaks_dot + i) : V{}) - load(k.mean_dot + c);
      const V xhat_dot = centred * load(k.inverse_deviation_dot + c) + moved * inverse;
      sum[0] += peak == peak ? g_dot : V{};
      sum[1] += peak == peak ? g_dot * (centred * inverse) + load(dy + i) * xhat_dot : V{};
    });
    for (int64_t c = 0; c < n.ld; ++c) {
      const T nan = T(0) * (k.inverse_deviation[c] + k.inverse_deviation_dot[c]);
      sum_dot[c] += nan, sum_xhat_dot[c] += nan;
    }
    Norm::put_sums(f, node, n.ld, sum_xhat_dot, sum_dot, f.gradient_dot);
    if (!wanted(node.input_mode[0])) return;

    T *scale = sum_xhat_dot + n.ld, *scale_dot = scale + n.ld, *b = scale_dot + n.ld, *a_dot = b + n.ld,
      *b_dot = a_dot + n.ld;
    put_slopes(f, node, k, n, {sum_dot, sum_xhat_dot, scale, scale_dot, b, a_dot, b_dot});
    const T *x = f.activation(node.input[0]), *x_dot = f.activation_dot(node.input[0]);
    T* dx_dot = f.cotangent_dot(node.input[0]);
    const bool accumulate = node.input_mode[0] == GradientMode::kAccumulate;
    const auto smooth = [=](int64_t i, int64_t c, V at) {
      V d = load(a_dot + c) + load(b_dot + c) * (at - load(k.mean + c));
      if (x_dot) d += load(b + c) * load(x_dot + i);
      return accumulate ? load(dx_dot + i) + d : d;
    };
    n.for_windows(f, [=](int64_t in, int64_t out) {
      for (int64_t c = 0; c < n.ld; c += L) {
        const V peak = load(peaks + out + c);
        V g = load(scale + c) * load(dy_dot + out + c) + load(scale_dot + c) * load(dy + out + c);
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) {
          const int64_t i = in + n.place(p) + c;
          const V at = load(x + i);
          store(dx_dot + i, smooth(i, c, at) + (at == peak ? g : V{}));
          g = at == peak ? V{} : g;
        }
      }
    });
    n.for_rest([&](int64_t in) {
      for (int64_t c = 0; c < n.ld; c += L) store(dx_dot + in + c, smooth(in + c, c, load(x + in + c)));
    });
  }

 private:
  struct Shape {
    const Value &x, &y;
    int64_t examples, ld, rows, pooled_rows;
    Shape(const Frame<T>& f, const Node& node)
        : x(f.value(node.input[0])),
          y(f.value(node.output)),
          examples(f.examples()),
          ld(y.ld),
          rows(f.rows(node.input[0])),
          pooled_rows(f.rows(node.output)) {}

    // From the first element of a window to position p, in torch's order.
    int64_t place(int p) const { return ((p >> 1) * int64_t(x.width) + (p & 1)) * ld; }

    // Calls body(first element of a window in x, first element of its output).
    template <class Body>
    void for_windows(const Frame<T>& f, const Body& body) const {
      f.share(examples * y.height, 16 * y.width * ld, [&](int64_t begin, int64_t end, T*) {
        const Body own = body;  // here, where no store can change what it has captured
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = i / y.height, h = i % y.height;
          for (int64_t w = 0; w < y.width; ++w)
            own((n * x.rows + 2 * h * x.width + 2 * w) * ld, (n * y.rows + h * y.width + w) * ld);
        }
      });
    }

    // Calls body(first element of a position) for the last row and column of an odd image, which no window covers.
    template <class Body>
    void for_rest(Body body) const {
      for (int64_t n = 0; n < examples; ++n)
        for (int64_t h = 0; h < x.height; ++h)
          for (int64_t w = h < 2 * y.height ? 2 * y.width : 0; w < x.width; ++w)
            body((n * x.rows + h * x.width + w) * ld);
    }
  };

  // Of each channel: the cotangent of an input is scale dy + a + b (x - mean), and what is tangent to it.
  struct Slopes {
    const T *sum_dot, *sum_xhat_dot;
    T *scale, *scale_dot, *b, *a_dot, *b_dot;
  };

  static void put_slopes(const Frame<T>& f, const Node& node, const Saved& k, const Shape& n, const Slopes& to) {
    using S = Dual<T>;
    const T *gamma = f.parameter(node.parameter[0]), *gamma_dot = f.parameter_dot(node.parameter[0]);
    for (int64_t c = 0; c < n.ld; ++c) {
      const S inverse(k.inverse_deviation[c], k.inverse_deviation_dot[c]);
      const S by = channel(gamma, gamma_dot, c, T(1)) * inverse;
      const S mean_dy(k.mean_dy[c], to.sum_dot[c] / T(n.rows)),
          mean_dy_xhat(k.mean_dy_xhat[c], to.sum_xhat_dot[c] / T(n.rows));
      const S slope = -by * inverse * mean_dy_xhat;
      to.scale[c] = by.v, to.scale_dot[c] = by.d;
      to.b[c] = slope.v, to.b_dot[c] = slope.d;
      to.a_dot[c] = -(by * mean_dy).d - slope.v * k.mean_dot[c];
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
