// y = gamma xhat + beta, xhat = (x - mean) / sqrt(var + eps), per channel over examples and positions (docs/maths.md,
// section 5). In training mode mean and variance (biased) are the batch's own and are differentiated; in evaluation
// mode they are given constants.
#pragma once

#include "../cpu/frame.h"
#include "normalisation.h"

namespace metafast {
namespace METAFAST_ISA {

// out[s][0 .. ld) = sum over rows of term(first element of a vector, its column)[s]. Four vectors side by side use
// whole cache lines; partial sums of kDepth rows keep float32 sums short.
template <class T, int SUMS, int WIDE, class Term>
static int64_t column_reduce_wide(int64_t j, int64_t ld, int64_t rows, T* const (&out)[SUMS], Term term) {
  constexpr int L = kLanes<T>;
  for (; j + WIDE * L <= ld; j += WIDE * L) {
    Vector<T> total[WIDE][SUMS] = {};
    for (int64_t r0 = 0; r0 < rows; r0 += kDepth) {
      const int64_t r1 = r0 + kDepth < rows ? r0 + kDepth : rows;
      Vector<T> part[WIDE][SUMS] = {};
      for (int64_t r = r0; r < r1; ++r) {
#pragma GCC unroll 4
        for (int w = 0; w < WIDE; ++w) term(r * ld + j + w * L, j + w * L, part[w]);
      }
      for (int w = 0; w < WIDE; ++w)
        for (int s = 0; s < SUMS; ++s) total[w][s] += part[w][s];
    }
    for (int w = 0; w < WIDE; ++w)
      for (int s = 0; s < SUMS; ++s) store(out[s] + j + w * L, total[w][s]);
  }
  return j;
}

template <class T, int SUMS, class Term>
static void column_reduce(int64_t ld, int64_t rows, T* const (&out)[SUMS], Term term) {
  const int64_t j = column_reduce_wide<T, SUMS, 4>(0, ld, rows, out, term);
  column_reduce_wide<T, SUMS, 1>(j, ld, rows, out, term);
}

// mean[0 .. ld) and the sum of squared deviations from it, in one pass over memory: blocks that fit into the first-level
// cache are read twice and joined.
template <class T, int WIDE>
static int64_t column_moments_wide(int64_t j, int64_t ld, int64_t rows, const T* x, T* mean, T* squares) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kBlock = 128;
  for (; j + WIDE * L <= ld; j += WIDE * L) {
    Vector<T> centre[WIDE] = {}, spread[WIDE] = {};
    for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
      const int64_t r1 = r0 + kBlock < rows ? r0 + kBlock : rows;
      Vector<T> sum[WIDE], local[WIDE], square[WIDE];
#pragma GCC unroll 4
      for (int w = 0; w < WIDE; ++w) sum[w] = square[w] = Vector<T>{};
      for (int64_t r = r0; r < r1; ++r) {
#pragma GCC unroll 4
        for (int w = 0; w < WIDE; ++w) sum[w] += load(x + r * ld + j + w * L);
      }
#pragma GCC unroll 4
      for (int w = 0; w < WIDE; ++w) local[w] = sum[w] / T(r1 - r0);
      for (int64_t r = r0; r < r1; ++r) {
#pragma GCC unroll 4
        for (int w = 0; w < WIDE; ++w) {
          const Vector<T> centred = load(x + r * ld + j + w * L) - local[w];
          square[w] += centred * centred;
        }
      }
#pragma GCC unroll 4
      for (int w = 0; w < WIDE; ++w) join_moments(centre[w], spread[w], T(r0), local[w], square[w], T(r1 - r0));
    }
#pragma GCC unroll 4
    for (int w = 0; w < WIDE; ++w) store(mean + j + w * L, centre[w]), store(squares + j + w * L, spread[w]);
  }
  return j;
}

template <class T>
struct BatchNorm {
  using V = Vector<T>;

  // What later passes need of each channel: a struct of arrays in the tape and the tangent tape.
  struct Saved {
    T *mean, *inverse_deviation;  // 1 / sqrt(var + eps)
    T *mean_dy, *mean_dy_xhat;    // averages over rows, zero in evaluation mode
    T *mean_dot, *inverse_deviation_dot;
    Saved(const Frame<T>& f, const Step& s) {
      const int64_t ld = f.value(s.output).ld;
      T* p = f.tape + s.saved;
      mean = p, inverse_deviation = p + ld, mean_dy = p + 2 * ld, mean_dy_xhat = p + 3 * ld;
      p = f.tangent_tape + s.saved_dot;
      mean_dot = p, inverse_deviation_dot = p + ld;
    }
  };

  static void batch_statistics(const Step& s, const T* x, int64_t ld, int64_t rows, const Saved& k) {
    const int64_t j = column_moments_wide<T, 4>(0, ld, rows, x, k.mean, k.inverse_deviation);
    column_moments_wide<T, 1>(j, ld, rows, x, k.mean, k.inverse_deviation);
    for (int64_t c = 0; c < ld; ++c) k.inverse_deviation[c] = inverse_deviation(s, k.inverse_deviation[c] / T(rows));
  }

  // mean' = average of x'; var' = 2 average of (x - mean) x'. Both are zero where x' is absent.
  static void batch_statistics_tangent(const T* x, const T* x_dot, int64_t ld, int64_t rows, const Saved& k) {
    for (int64_t c = 0; c < ld; ++c) k.mean_dot[c] = k.inverse_deviation_dot[c] = T(0);
    if (!x_dot) return;
    column_reduce<T, 2>(ld, rows, {k.mean_dot, k.inverse_deviation_dot}, [&](int64_t i, int64_t c, V* sum) {
      const V d = load(x_dot + i);
      sum[0] += d;
      sum[1] += d * (load(x + i) - load(k.mean + c));
    });
    for (int64_t c = 0; c < ld; ++c) {
      k.mean_dot[c] /= T(rows);
      k.inverse_deviation_dot[c] =
          inverse_deviation_tangent(k.inverse_deviation[c], k.inverse_deviation_dot[c] / T(rows));
    }
  }

  // y' = a x' + b (x - mean) + shift, with a = gamma / deviation, b = a' and shift = beta' - a mean'.
  static void tangent_coefficients(const Frame<T>& f, const Step& s, int64_t ld, const Saved& k, T* a, T* b, T* shift) {
    const T *gamma = f.parameter(s.parameter[0]), *gamma_dot = f.parameter_dot(s.parameter[0]);
    const T* beta_dot = f.parameter_dot(s.parameter[1]);
    for (int64_t c = 0; c < ld; ++c) {
      const Dual<T> scale =
          channel(gamma, gamma_dot, c, T(1)) * Dual<T>(k.inverse_deviation[c], k.inverse_deviation_dot[c]);
      a[c] = scale.v, b[c] = scale.d;
      shift[c] = (beta_dot ? beta_dot[c] : T(0)) - scale.v * k.mean_dot[c];
    }
  }

  static void forward(const Frame<T>& f, const Step& s) {
    const Saved k(f, s);
    const T* __restrict x = f.activation(s.input[0]);
    const int64_t ld = f.value(s.output).ld, rows = f.rows(s.output);
    if (s.training) {
      batch_statistics(s, x, ld, rows, k);
    } else {
      const T *mean = f.parameter(s.parameter[2]), *variance = f.parameter(s.parameter[3]);
      for (int64_t c = 0; c < ld; ++c) k.mean[c] = mean[c], k.inverse_deviation[c] = inverse_deviation(s, variance[c]);
    }
    const T *gamma = f.parameter(s.parameter[0]), *beta = f.parameter(s.parameter[1]);
    T* __restrict scale = f.scratch;
    T* __restrict shift = f.scratch + ld;
    for (int64_t c = 0; c < ld; ++c) {
      scale[c] = gamma ? gamma[c] * k.inverse_deviation[c] : k.inverse_deviation[c];
      shift[c] = beta ? beta[c] : T(0);
    }
    T* __restrict y = f.activation_out(s.output);
    const T* __restrict mean = k.mean;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < ld; ++c) y[r * ld + c] = normalised(x[r * ld + c], mean[c], scale[c], shift[c]);
  }

  static void backward(const Frame<T>& f, const Step& s) {
    const Saved k(f, s);
    const T* __restrict x = f.activation(s.input[0]);
    const T* __restrict dy = f.cotangent(s.output);
    const int64_t ld = f.value(s.output).ld, rows = f.rows(s.output);
    column_reduce<T, 2>(ld, rows, {k.mean_dy, k.mean_dy_xhat}, [&](int64_t i, int64_t c, V* sum) {
      const V g = load(dy + i);
      sum[0] += g;
      sum[1] += g * normalised(load(x + i), load(k.mean + c), load(k.inverse_deviation + c));
    });
    put_sums(f, s, ld, k.mean_dy_xhat, k.mean_dy, f.gradient);
    for (int64_t c = 0; c < ld; ++c) {
      k.mean_dy[c] = s.training ? k.mean_dy[c] / T(rows) : T(0);
      k.mean_dy_xhat[c] = s.training ? k.mean_dy_xhat[c] / T(rows) : T(0);
    }
    if (!wanted(s.input_mode[0])) return;
    const T* gamma = f.parameter(s.parameter[0]);
    T* __restrict scale = f.scratch;
    for (int64_t c = 0; c < ld; ++c) scale[c] = gamma ? gamma[c] * k.inverse_deviation[c] : k.inverse_deviation[c];
    const T* __restrict mean = k.mean, * __restrict inverse = k.inverse_deviation;
    const T* __restrict mean_dy = k.mean_dy, * __restrict mean_dy_xhat = k.mean_dy_xhat;
    T* __restrict dx = f.cotangent(s.input[0]);
    const bool accumulate = s.input_mode[0] == GradientMode::kAccumulate;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < ld; ++c) {
        const int64_t i = r * ld + c;
        const T xhat = normalised(x[i], mean[c], inverse[c]);
        dx[i] =
            (accumulate ? dx[i] : T(0)) + normalised_input_gradient(dy[i], xhat, scale[c], mean_dy[c], mean_dy_xhat[c]);
      }
  }

  static void tangent_forward(const Frame<T>& f, const Step& s) {
    T* __restrict y_dot = f.activation_dot(s.output);
    if (!y_dot) return;
    const Saved k(f, s);
    const T* __restrict x = f.activation(s.input[0]);
    const T* __restrict x_dot = f.activation_dot(s.input[0]);
    const int64_t ld = f.value(s.output).ld, rows = f.rows(s.output);
    batch_statistics_tangent(x, s.training ? x_dot : nullptr, ld, rows, k);
    T* __restrict a = f.scratch, * __restrict b = a + ld, * __restrict shift = b + ld;
    tangent_coefficients(f, s, ld, k, a, b, shift);
    const T* __restrict mean = k.mean;
    if (x_dot)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < ld; ++c) {
          const int64_t i = r * ld + c;
          y_dot[i] = a[c] * x_dot[i] + b[c] * (x[i] - mean[c]) + shift[c];
        }
    else
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < ld; ++c) y_dot[r * ld + c] = b[c] * (x[r * ld + c] - mean[c]) + shift[c];
  }

  static void tangent_backward(const Frame<T>& f, const Step& s) {
    const Saved k(f, s);
    const T* __restrict x = f.activation(s.input[0]);
    const T* __restrict x_dot = f.activation_dot(s.input[0]);
    const T* __restrict dy = f.cotangent(s.output);
    const T* __restrict dy_dot = f.cotangent_dot(s.output);
    const int64_t ld = f.value(s.output).ld, rows = f.rows(s.output);
    if (!f.activation_dot(s.output))  // tangent_forward had nothing to do here
      for (int64_t c = 0; c < ld; ++c) k.mean_dot[c] = k.inverse_deviation_dot[c] = T(0);

    T *sum_dy_dot = f.scratch, *sum_dy_xhat_dot = sum_dy_dot + ld;
    column_reduce<T, 2>(ld, rows, {sum_dy_dot, sum_dy_xhat_dot}, [&](int64_t i, int64_t c, V* sum) {
      const V centred = load(x + i) - load(k.mean + c), inverse = load(k.inverse_deviation + c);
      V xhat_dot = centred * load(k.inverse_deviation_dot + c) - load(k.mean_dot + c) * inverse;
      if (x_dot) xhat_dot += load(x_dot + i) * inverse;
      const V g_dot = load(dy_dot + i);
      sum[0] += g_dot;
      sum[1] += g_dot * (centred * inverse) + load(dy + i) * xhat_dot;
    });
    put_sums(f, s, ld, sum_dy_xhat_dot, sum_dy_dot, f.gradient_dot);
    if (!wanted(s.input_mode[0])) return;

    const T *gamma = f.parameter(s.parameter[0]), *gamma_dot = f.parameter_dot(s.parameter[0]);
    T* __restrict scale = sum_dy_xhat_dot + ld, * __restrict scale_dot = scale + ld;
    T* __restrict mean_dy_dot = sum_dy_dot, * __restrict mean_dy_xhat_dot = sum_dy_xhat_dot;
    for (int64_t c = 0; c < ld; ++c) {
      const Dual<T> a =
          channel(gamma, gamma_dot, c, T(1)) * Dual<T>(k.inverse_deviation[c], k.inverse_deviation_dot[c]);
      scale[c] = a.v, scale_dot[c] = a.d;
      mean_dy_dot[c] = s.training ? mean_dy_dot[c] / T(rows) : T(0);
      mean_dy_xhat_dot[c] = s.training ? mean_dy_xhat_dot[c] / T(rows) : T(0);
    }
    const T* __restrict mean = k.mean, * __restrict mean_dot = k.mean_dot;
    const T* __restrict inverse = k.inverse_deviation, * __restrict inverse_dot = k.inverse_deviation_dot;
    const T* __restrict mean_dy = k.mean_dy, * __restrict mean_dy_xhat = k.mean_dy_xhat;
    T* __restrict dx_dot = f.cotangent_dot(s.input[0]);
    const bool accumulate = s.input_mode[0] == GradientMode::kAccumulate;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < ld; ++c) {
        using S = Dual<T>;
        const int64_t i = r * ld + c;
        const S xhat = S(x[i] - mean[c], (x_dot ? x_dot[i] : T(0)) - mean_dot[c]) * S(inverse[c], inverse_dot[c]);
        const S dx = normalised_input_gradient(S(dy[i], dy_dot[i]), xhat, S(scale[c], scale_dot[c]),
                                               S(mean_dy[c], mean_dy_dot[c]), S(mean_dy_xhat[c], mean_dy_xhat_dot[c]));
        dx_dot[i] = (accumulate ? dx_dot[i] : T(0)) + dx.d;
      }
  }

  // The gradients of gamma and beta are sums that the input gradient needs as well.
  static void put_sums(const Frame<T>& f, const Step& s, int64_t ld, const T* gamma_sum, const T* beta_sum,
                       T* gradient) {
    if (!gradient) return;
    const T* sums[2] = {gamma_sum, beta_sum};
    for (int p = 0; p < 2; ++p)
      if (wanted(s.parameter_mode[p])) {
        T* out = gradient + f.parameter_plan(s.parameter[p]).offset;
        for (int64_t c = 0; c < ld; ++c) put(out + c, sums[p][c], s.parameter_mode[p]);
      }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
