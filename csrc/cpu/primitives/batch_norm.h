// y = gamma xhat + beta, xhat = (x - mean) / sqrt(var + eps), per channel over examples and positions (docs/maths.md,
// section 5). In training mode mean and variance (biased) are the batch's own and are differentiated; in evaluation
// mode they are given constants.
#pragma once

#include "cpu/frame.h"
#include "formulas/normalise.h"

namespace metafast {
namespace METAFAST_ISA {

// Sums over rows are folded from those of blocks of rows, in order: float32 sums stay short, and idle threads can take blocks.
// Columns are taken four vectors side by side, as far as there are so many: sums of one wait for each other.

// out[s][j ..] = the sum over rows r0 .. r1 of term(first element of a vector, its column)[s]; the next j.
template <class T, int SUMS, int WIDE, class Term>
static int64_t block_sums(int64_t j, int64_t ld, int64_t r0, int64_t r1, T* out, Term term) {
  constexpr int L = kLanes<T>;
  for (; j + WIDE * L <= ld; j += WIDE * L) {
    Vector<T> part[WIDE][SUMS] = {};
    for (int64_t r = r0; r < r1; ++r) {
#pragma GCC unroll 4
      for (int w = 0; w < WIDE; ++w) term(r * ld + j + w * L, j + w * L, part[w]);
    }
    for (int w = 0; w < WIDE; ++w)
      for (int s = 0; s < SUMS; ++s) store(out + s * ld + j + w * L, part[w][s]);
  }
  return j;
}

// Where the sums of blocks stand in the scratch.
template <class T>
static T* sums_of_blocks(const Frame<T>& f, int64_t ld) {
  return f.scratch + kNormArrays * ld;
}

// out[s][0 .. ld) = the sum over all rows.
template <class T, int SUMS, class Term>
static void column_reduce(const Frame<T>& f, int64_t ld, int64_t rows, T* const (&out)[SUMS], Term term) {
  T* const sums = sums_of_blocks(f, ld);
  const int64_t blocks = (rows + kDepth - 1) / kDepth;
  f.share(blocks, 4 * kDepth * ld, [&](int64_t begin, int64_t end, T*) {
    const Term own = term;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t r0 = b * kDepth, r1 = r0 + kDepth < rows ? r0 + kDepth : rows;
      T* const to = sums + b * SUMS * ld;
      int64_t j = block_sums<T, SUMS, 4>(0, ld, r0, r1, to, own);
      j = block_sums<T, SUMS, 2>(j, ld, r0, r1, to, own);
      block_sums<T, SUMS, 1>(j, ld, r0, r1, to, own);
    }
  });
  for (int s = 0; s < SUMS; ++s)
    for (int64_t c = 0; c < ld; c += kLanes<T>) {
      Vector<T> total{};
      for (int64_t b = 0; b < blocks; ++b) total += load(sums + (b * SUMS + s) * ld + c);
      store(out[s] + c, total);
    }
}

// out[0][j ..] = the mean over rows r0 .. r1, out[1] the sum of squared deviations from it; the next j. What fits into the
// first-level cache is read twice.
template <class T, int WIDE>
static int64_t block_moments(int64_t j, int64_t ld, int64_t r0, int64_t r1, const T* x, T* out) {
  constexpr int L = kLanes<T>;
  for (; j + WIDE * L <= ld; j += WIDE * L) {
    Vector<T> sum[WIDE], mean[WIDE], square[WIDE];
#pragma GCC unroll 4
    for (int w = 0; w < WIDE; ++w) sum[w] = square[w] = Vector<T>{};
    for (int64_t r = r0; r < r1; ++r) {
#pragma GCC unroll 4
      for (int w = 0; w < WIDE; ++w) sum[w] += load(x + r * ld + j + w * L);
    }
#pragma GCC unroll 4
    for (int w = 0; w < WIDE; ++w) mean[w] = sum[w] / T(r1 - r0);
    for (int64_t r = r0; r < r1; ++r) {
#pragma GCC unroll 4
      for (int w = 0; w < WIDE; ++w) {
        const Vector<T> centred = load(x + r * ld + j + w * L) - mean[w];
        square[w] += centred * centred;
      }
    }
#pragma GCC unroll 4
    for (int w = 0; w < WIDE; ++w) store(out + j + w * L, mean[w]), store(out + ld + j + w * L, square[w]);
  }
  return j;
}

// The mean over all rows and the sum of squared deviations from it, in one pass over memory.
template <class T>
static void column_moments(const Frame<T>& f, int64_t ld, int64_t rows, const T* x, T* mean, T* squares) {
  T* const moments = sums_of_blocks(f, ld);
  const int64_t blocks = (rows + kMomentRows - 1) / kMomentRows;
  const auto last = [&](int64_t b) { return (b + 1) * kMomentRows < rows ? (b + 1) * kMomentRows : rows; };
  f.share(blocks, 4 * kMomentRows * ld, [&](int64_t begin, int64_t end, T*) {
    for (int64_t b = begin; b < end; ++b) {
      T* const out = moments + 2 * b * ld;
      int64_t j = block_moments<T, 4>(0, ld, b * kMomentRows, last(b), x, out);
      j = block_moments<T, 2>(j, ld, b * kMomentRows, last(b), x, out);
      block_moments<T, 1>(j, ld, b * kMomentRows, last(b), x, out);
    }
  });
  for (int64_t c = 0; c < ld; c += kLanes<T>) {
    Vector<T> centre{}, spread{};
    for (int64_t b = 0; b < blocks; ++b) {
      const T* from = moments + 2 * b * ld + c;
      join_moments(centre, spread, T(b * kMomentRows), load(from), load(from + ld), T(last(b) - b * kMomentRows));
    }
    store(mean + c, centre), store(squares + c, spread);
  }
}

template <class T>
struct BatchNorm {
  using V = Vector<T>;

  // What later passes need of each channel: a struct of arrays in the tape and the tangent tape.
  struct Saved {
    T *mean, *inverse_deviation;  // 1 / sqrt(var + eps)
    T *mean_dy, *mean_dy_xhat;    // averages over rows, zero in evaluation mode
    T *mean_dot, *inverse_deviation_dot;
    Saved(const Frame<T>& f, const Node& node) {
      const int64_t ld = f.value(node.output).ld;
      T* p = f.tape + node.saved;
      mean = p, inverse_deviation = p + ld, mean_dy = p + 2 * ld, mean_dy_xhat = p + 3 * ld;
      p = f.tangent_tape + node.saved_dot;
      mean_dot = p, inverse_deviation_dot = p + ld;
    }
  };

  // Calls body(index of an element, its channel) for all, in any order.
  template <class Body>
  static void each_element(const Frame<T>& f, int64_t rows, int64_t ld, const Body& body) {
    f.share(rows, 8 * ld, [&](int64_t begin, int64_t end, T*) {
      const Body own = body;  // here, where no store can change what it has captured
      for (int64_t r = begin; r < end; ++r)
#pragma GCC ivdep
        for (int64_t c = 0; c < ld; ++c) own(r * ld + c, c);
    });
  }

  static void batch_statistics(const Frame<T>& f, const Node& node, const T* x, int64_t ld, int64_t rows,
                               const Saved& k) {
    column_moments(f, ld, rows, x, k.mean, k.inverse_deviation);
    for (int64_t c = 0; c < ld; ++c) k.inverse_deviation[c] = inverse_deviation(node, k.inverse_deviation[c] / T(rows));
  }

  // mean' = average of x'; var' = 2 average of (x - mean) x'. Both are zero where x' is absent.
  static void batch_statistics_tangent(const Frame<T>& f, const T* x, const T* x_dot, int64_t ld, int64_t rows,
                                       const Saved& k) {
    for (int64_t c = 0; c < ld; ++c) k.mean_dot[c] = k.inverse_deviation_dot[c] = T(0);
    if (!x_dot) return;
    column_reduce<T, 2>(f, ld, rows, {k.mean_dot, k.inverse_deviation_dot}, [=](int64_t i, int64_t c, V* sum) {
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
  static void tangent_coefficients(const Frame<T>& f, const Node& node, int64_t ld, const Saved& k, T* a, T* b,
                                   T* shift) {
    const T *gamma = f.parameter(node.parameter[0]), *gamma_dot = f.parameter_dot(node.parameter[0]);
    const T* beta_dot = f.parameter_dot(node.parameter[1]);
    for (int64_t c = 0; c < ld; ++c) {
      const Dual<T> scale =
          channel(gamma, gamma_dot, c, T(1)) * Dual<T>(k.inverse_deviation[c], k.inverse_deviation_dot[c]);
      a[c] = scale.v, b[c] = scale.d;
      shift[c] = (beta_dot ? beta_dot[c] : T(0)) - scale.v * k.mean_dot[c];
    }
  }

  static void forward(const Frame<T>& f, const Node& node) {
    const Saved k(f, node);
    const T* x = f.activation(node.input[0]);
    const int64_t ld = f.value(node.output).ld, rows = f.rows(node.output);
    if (node.training) {
      batch_statistics(f, node, x, ld, rows, k);
    } else {
      const T *mean = f.parameter(node.parameter[2]), *variance = f.parameter(node.parameter[3]);
      for (int64_t c = 0; c < ld; ++c)
        k.mean[c] = mean[c], k.inverse_deviation[c] = inverse_deviation(node, variance[c]);
    }
    const T *gamma = f.parameter(node.parameter[0]), *beta = f.parameter(node.parameter[1]);
    T *scale = f.scratch, *shift = f.scratch + ld;
    for (int64_t c = 0; c < ld; ++c) {
      scale[c] = gamma ? gamma[c] * k.inverse_deviation[c] : k.inverse_deviation[c];
      shift[c] = beta ? beta[c] : T(0);
    }
    T* y = f.activation_out(node.output);
    const T* mean = k.mean;
    each_element(f, rows, ld, [=](int64_t i, int64_t c) { y[i] = normalised(x[i], mean[c], scale[c], shift[c]); });
  }

  static void backward(const Frame<T>& f, const Node& node) {
    const Saved k(f, node);
    const T* x = f.activation(node.input[0]);
    const T* dy = f.cotangent(node.output);
    const int64_t ld = f.value(node.output).ld, rows = f.rows(node.output);
    column_reduce<T, 2>(f, ld, rows, {k.mean_dy, k.mean_dy_xhat}, [=](int64_t i, int64_t c, V* sum) {
      const V g = load(dy + i);
      sum[0] += g;
      sum[1] += g * normalised(load(x + i), load(k.mean + c), load(k.inverse_deviation + c));
    });
    put_sums(f, node, ld, k.mean_dy_xhat, k.mean_dy, f.gradient);
    for (int64_t c = 0; c < ld; ++c) {
      k.mean_dy[c] = node.training ? k.mean_dy[c] / T(rows) : T(0);
      k.mean_dy_xhat[c] = node.training ? k.mean_dy_xhat[c] / T(rows) : T(0);
    }
    if (!wanted(node.input_mode[0])) return;
    const T* gamma = f.parameter(node.parameter[0]);
    T* scale = f.scratch;
    for (int64_t c = 0; c < ld; ++c) scale[c] = gamma ? gamma[c] * k.inverse_deviation[c] : k.inverse_deviation[c];
    T* dx = f.cotangent(node.input[0]);
    const bool accumulate = node.input_mode[0] == GradientMode::kAccumulate;
    each_element(f, rows, ld, [=](int64_t i, int64_t c) {
      const T xhat = normalised(x[i], k.mean[c], k.inverse_deviation[c]);
      const T d = normalised_input_gradient(dy[i], xhat, scale[c], k.mean_dy[c], k.mean_dy_xhat[c]);
      dx[i] = (accumulate ? dx[i] : T(0)) + d;
    });
  }

  static void tangent_forward(const Frame<T>& f, const Node& node) {
    T* y_dot = f.activation_dot(node.output);
    if (!y_dot) return;
    const Saved k(f, node);
    const T* x = f.activation(node.input[0]);
    const T* x_dot = f.activation_dot(node.input[0]);
    const int64_t ld = f.value(node.output).ld, rows = f.rows(node.output);
    batch_statistics_tangent(f, x, node.training ? x_dot : nullptr, ld, rows, k);
    T *a = f.scratch, *b = a + ld, *shift = b + ld;
    tangent_coefficients(f, node, ld, k, a, b, shift);
    const T* mean = k.mean;
    if (x_dot)
      each_element(f, rows, ld,
                   [=](int64_t i, int64_t c) { y_dot[i] = a[c] * x_dot[i] + b[c] * (x[i] - mean[c]) + shift[c]; });
    else
      each_element(f, rows, ld, [=](int64_t i, int64_t c) { y_dot[i] = b[c] * (x[i] - mean[c]) + shift[c]; });
  }

  static void tangent_backward(const Frame<T>& f, const Node& node) {
    const Saved k(f, node);
    const T* x = f.activation(node.input[0]);
    const T* x_dot = f.activation_dot(node.input[0]);
    const T* dy = f.cotangent(node.output);
    const T* dy_dot = f.cotangent_dot(node.output);
    const int64_t ld = f.value(node.output).ld, rows = f.rows(node.output);
    if (!f.activation_dot(node.output))  // tangent_forward had nothing to do here
      for (int64_t c = 0; c < ld; ++c) k.mean_dot[c] = k.inverse_deviation_dot[c] = T(0);

    T *sum_dy_dot = f.scratch, *sum_dy_xhat_dot = sum_dy_dot + ld;
    column_reduce<T, 2>(f, ld, rows, {sum_dy_dot, sum_dy_xhat_dot}, [=](int64_t i, int64_t c, V* sum) {
      const V centred = load(x + i) - load(k.mean + c), inverse = load(k.inverse_deviation + c);
      V xhat_dot = centred * load(k.inverse_deviation_dot + c) - load(k.mean_dot + c) * inverse;
      if (x_dot) xhat_dot += load(x_dot + i) * inverse;
      const V g_dot = load(dy_dot + i);
      sum[0] += g_dot;
      sum[1] += g_dot * (centred * inverse) + load(dy + i) * xhat_dot;
    });
    put_sums(f, node, ld, sum_dy_xhat_dot, sum_dy_dot, f.gradient_dot);
    if (!wanted(node.input_mode[0])) return;

    const T *gamma = f.parameter(node.parameter[0]), *gamma_dot = f.parameter_dot(node.parameter[0]);
    T *scale = sum_dy_xhat_dot + ld, *scale_dot = scale + ld;
    T *mean_dy_dot = sum_dy_dot, *mean_dy_xhat_dot = sum_dy_xhat_dot;
    for (int64_t c = 0; c < ld; ++c) {
      const Dual<T> a =
          channel(gamma, gamma_dot, c, T(1)) * Dual<T>(k.inverse_deviation[c], k.inverse_deviation_dot[c]);
      scale[c] = a.v, scale_dot[c] = a.d;
      mean_dy_dot[c] = node.training ? mean_dy_dot[c] / T(rows) : T(0);
      mean_dy_xhat_dot[c] = node.training ? mean_dy_xhat_dot[c] / T(rows) : T(0);
    }
    T* dx_dot = f.cotangent_dot(node.input[0]);
    const bool accumulate = node.input_mode[0] == GradientMode::kAccumulate;
    each_element(f, rows, ld, [=](int64_t i, int64_t c) {
      using S = Dual<T>;
      const S centred(x[i] - k.mean[c], (x_dot ? x_dot[i] : T(0)) - k.mean_dot[c]);
      const S xhat = centred * S(k.inverse_deviation[c], k.inverse_deviation_dot[c]);
      const S mean_dy(k.mean_dy[c], mean_dy_dot[c]), mean_dy_xhat(k.mean_dy_xhat[c], mean_dy_xhat_dot[c]);
      const S dx =
          normalised_input_gradient(S(dy[i], dy_dot[i]), xhat, S(scale[c], scale_dot[c]), mean_dy, mean_dy_xhat);
      dx_dot[i] = (accumulate ? dx_dot[i] : T(0)) + dx.d;
    });
  }

  // The gradients of gamma and beta are sums that the input gradient needs as well.
  static void put_sums(const Frame<T>& f, const Node& node, int64_t ld, const T* gamma_sum, const T* beta_sum,
                       T* gradient) {
    if (!gradient) return;
    const T* sums[2] = {gamma_sum, beta_sum};
    for (int p = 0; p < 2; ++p)
      if (wanted(node.parameter_mode[p])) {
        T* out = gradient + f.parameter_plan(node.parameter[p]).offset;
        for (int64_t c = 0; c < ld; ++c) put(out + c, sums[p][c], node.parameter_mode[p]);
      }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
