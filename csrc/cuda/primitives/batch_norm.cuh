// BatchNorm, and the sums over rows that BatchNorm with ReLU and pooling (batch_norm_relu_pool.cuh) shares with it. What
// is computed is in csrc/cpu/primitives/batch_norm.h. A phase works on values or, once tangents exist, on dual numbers: the
// same formulae give both.
#pragma once

#include "cuda/primitives/columns.cuh"
#include "formulas/normalise.h"
#include "program/primitives.h"

namespace metafast {
namespace METAFAST_ISA {

// What later phases and passes need of each channel.
template <class T>
struct NormChannels {
  T *mean, *inverse, *mean_dy, *mean_dy_xhat;  // in the tape
  T *mean_dot, *inverse_dot;                   // in the tangent tape
  T *mean_dy_dot, *mean_dy_xhat_dot;           // in scratch, from one phase to the next
  T* chunks;                                   // in scratch, as well
  const T *gamma, *beta, *gamma_dot, *beta_dot;

  __device__ NormChannels(const Frame<T>& f, const Node& node) {
    const int64_t ld = f.value(node.output).ld;
    T* p = f.tape + node.saved;
    mean = p, inverse = p + ld, mean_dy = p + 2 * ld, mean_dy_xhat = p + 3 * ld;
    p = f.tangent_tape + node.saved_dot;
    mean_dot = p, inverse_dot = p + ld;
    mean_dy_dot = f.scratch, mean_dy_xhat_dot = f.scratch + ld, chunks = f.scratch + 2 * ld;
    gamma = f.parameter(node.parameter[0]), beta = f.parameter(node.parameter[1]);
    gamma_dot = f.parameter_dot(node.parameter[0]), beta_dot = f.parameter_dot(node.parameter[1]);
  }

  // A number from its value and its tangent, which is not read if S is a real number.
  template <class S>
  struct Of {
    const NormChannels& k;
    __device__ S at(const T* value, const T* dot, uint32_t i) const {
      if constexpr (sizeof(S) == sizeof(T))
        return value[i];
      else
        return {value[i], dot ? dot[i] : T(0)};
    }
    __device__ S parameter(const T* value, const T* dot, uint32_t c, T otherwise) const {
      if constexpr (sizeof(S) == sizeof(T))
        return value ? value[c] : otherwise;
      else
        return channel(value, dot, c, otherwise);
    }
    __device__ S mean(uint32_t c) const { return at(k.mean, k.mean_dot, c); }
    __device__ S inverse(uint32_t c) const { return at(k.inverse, k.inverse_dot, c); }
    __device__ S mean_dy(uint32_t c) const { return at(k.mean_dy, k.mean_dy_dot, c); }
    __device__ S mean_dy_xhat(uint32_t c) const { return at(k.mean_dy_xhat, k.mean_dy_xhat_dot, c); }
    __device__ S scale(uint32_t c) const { return parameter(k.gamma, k.gamma_dot, c, T(1)) * inverse(c); }
    __device__ S shift(uint32_t c) const { return parameter(k.beta, k.beta_dot, c, T(0)); }
  };
};

// What a phase is to make of a number: its value, or its tangent.
template <class T>
MF_HD T result(T x) {
  return x;
}
template <class T>
MF_HD T result(Dual<T> x) {
  return x.d;
}

// Calls body(NormChannels::Of<S>) with S a real number or, once tangents exist, a dual one.
template <class T, class Body>
static __device__ void with_channels(const Frame<T>& f, const Node& node, Body body) {
  const NormChannels<T> k(f, node);
  if (f.tangent_tape)
    body(typename NormChannels<T>::template Of<Dual<T>>{k}, Dual<T>());
  else
    body(typename NormChannels<T>::template Of<T>{k}, T());
}

// Means and sums of squared deviations of chunks; or sums that their tangents are made of.
template <class T>
struct NormMoments : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const NormChannels<T> k(f, node);
    const T *x = f.activation(node.input[0]), *x_dot = f.activation_dot(node.input[0]);
    const int64_t rows = f.rows(node.input[0]);
    const int32_t ld = f.value(node.output).ld;
    if (f.tangent_tape) {
      sum_chunks<2>(block, rows, ld, k.chunks, [&](uint32_t i, uint32_t c, T* sum) {
        sum[0] += x_dot[i];
        sum[1] += x_dot[i] * (x[i] - k.mean[c]);
      });
      return;
    }
    for_chunks(block, rows, ld, [&](uint32_t chunk, uint32_t i, uint32_t c, uint32_t count) {
      T mean = T(0), squares = T(0);
      for (uint32_t r = 0; r < count; ++r) mean += x[i + r * uint32_t(ld)];
      mean /= T(count);
      for (uint32_t r = 0; r < count; ++r) {
        const T centred = x[i + r * uint32_t(ld)] - mean;
        squares += centred * centred;
      }
      T* out = k.chunks + chunk * 2 * uint32_t(ld) + c;
      out[0] = mean, out[ld] = squares;
    });
  }
};

// Statistics of the batch, from the chunks; those given, in evaluation mode; or their tangents.
template <class T>
struct NormStatistics : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const NormChannels<T> k(f, node);
    const int32_t ld = f.value(node.output).ld, rows = int32_t(f.rows(node.input[0])), size = block.argument;
    const bool moves = node.training && f.activation_dot(node.input[0]);
    const T *mean = f.parameter(node.parameter[2]), *variance = f.parameter(node.parameter[3]);
    block.for_each(ld, [&](uint32_t c) {
      if (f.tangent_tape) {
        T sum[2] = {T(0), T(0)};
        if (moves) add_chunks<2>(block, rows, ld, c, k.chunks, sum);
        k.mean_dot[c] = sum[0] / T(rows);
        k.inverse_dot[c] = moves ? inverse_deviation_tangent(k.inverse[c], sum[1] / T(rows)) : T(0);
      } else if (node.training) {
        T centre = T(0), squares = T(0);
        const T* chunk = k.chunks + c;
        for (int32_t begin = 0; begin < rows; begin += size, chunk += 2 * ld) {
          const int32_t end = begin + size < rows ? begin + size : rows;
          join_moments(centre, squares, T(begin), chunk[0], chunk[ld], T(end - begin));
        }
        k.mean[c] = centre;
        k.inverse[c] = inverse_deviation(node, squares / T(rows));
      } else {
        k.mean[c] = mean[c];
        k.inverse[c] = inverse_deviation(node, variance[c]);
      }
    });
  }
};

template <class T>
struct NormForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const T *x = f.activation(node.input[0]), *x_dot = f.activation_dot(node.input[0]);
    T* y = f.tangent_tape ? f.activation_dot(node.output) : f.activation_out(node.output);
    with_channels(f, node, [&](const auto& of, auto scalar) {
      using S = decltype(scalar);
      for_quads(block, f.rows(node.output), f.value(node.output).ld, [&](uint32_t i, uint32_t c) {
        const Quad<T> value = load4(x + i), moved = x_dot ? load4(x_dot + i) : Quad<T>{};
        Quad<T> out;
        for (int j = 0; j < kDeviceLanes; ++j)
          out.v[j] = result(
              normalised(S(of.at(&value.v[j], &moved.v[j], 0)), of.mean(c + j), of.scale(c + j), of.shift(c + j)));
        store4(y + i, out);
      });
    });
  }
};

template <class T>
struct NormGradientSums : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const T *x = f.activation(node.input[0]), *x_dot = f.activation_dot(node.input[0]);
    const T *dy = f.cotangent(node.output), *dy_dot = f.tangent_tape ? f.cotangent_dot(node.output) : nullptr;
    with_channels(f, node, [&](const auto& of, auto scalar) {
      using S = decltype(scalar);
      sum_chunks<2>(block, f.rows(node.output), f.value(node.output).ld, of.k.chunks,
                    [&](uint32_t i, uint32_t c, T* sum) {
                      const S g = of.at(dy, dy_dot, i);
                      sum[0] += result(g);
                      sum[1] += result(g * normalised(S(of.at(x, x_dot, i)), of.mean(c), of.inverse(c)));
                    });
    });
  }
};

// The gradients of gamma and beta are sums that the input gradient needs as well, as averages.
template <class T>
struct NormGradientFold : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const NormChannels<T> k(f, node);
    const bool tangent = f.tangent_tape, pooled = node.op == Op::kBatchNormReluPool;
    const int32_t ld = f.value(node.output).ld;
    T *mean_dy = tangent ? k.mean_dy_dot : k.mean_dy, *mean_dy_xhat = tangent ? k.mean_dy_xhat_dot : k.mean_dy_xhat;
    T* gradients[2] = {};
    for (int p = 0; p < 2; ++p)
      if (wanted(node.parameter_mode[p]))
        gradients[p] = tangent ? f.parameter_gradient_dot(node.parameter[p]) : f.parameter_gradient(node.parameter[p]);
    const T count = T(f.rows(node.input[0]));
    block.for_each(ld, [&](uint32_t c) {
      T sum[2];
      add_chunks<2>(block, f.rows(node.output), ld, c, k.chunks, sum);
      if (pooled) {  // whose windows look inactive where statistics are NaN
        const T nan = T(0) * (tangent ? k.inverse[c] + k.inverse_dot[c] : k.inverse[c]);
        sum[0] += nan, sum[1] += nan;
      }
      if (gradients[0]) put(gradients[0] + c, sum[1], node.parameter_mode[0]);
      if (gradients[1]) put(gradients[1] + c, sum[0], node.parameter_mode[1]);
      mean_dy[c] = node.training ? sum[0] / count : T(0);
      mean_dy_xhat[c] = node.training ? sum[1] / count : T(0);
    });
  }
};

template <class T>
struct NormInputGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const T *x = f.activation(node.input[0]), *x_dot = f.activation_dot(node.input[0]);
    const T *dy = f.cotangent(node.output), *dy_dot = f.tangent_tape ? f.cotangent_dot(node.output) : nullptr;
    T* dx = f.tangent_tape ? f.cotangent_dot(node.input[0]) : f.cotangent(node.input[0]);
    const bool accumulate = node.input_mode[0] == GradientMode::kAccumulate;
    with_channels(f, node, [&](const auto& of, auto scalar) {
      using S = decltype(scalar);
      for_quads(block, f.rows(node.output), f.value(node.output).ld, [&](uint32_t i, uint32_t c) {
        const Quad<T> value = load4(x + i), moved = x_dot ? load4(x_dot + i) : Quad<T>{};
        const Quad<T> g = load4(dy + i), g_moved = dy_dot ? load4(dy_dot + i) : Quad<T>{};
        Quad<T> out = accumulate ? load4(dx + i) : Quad<T>{};
        for (int j = 0; j < kDeviceLanes; ++j) {
          const S xhat = normalised(S(of.at(&value.v[j], &moved.v[j], 0)), of.mean(c + j), of.inverse(c + j));
          out.v[j] += result(normalised_input_gradient(S(of.at(&g.v[j], &g_moved.v[j], 0)), xhat, of.scale(c + j),
                                                       of.mean_dy(c + j), of.mean_dy_xhat(c + j)));
        }
        store4(dx + i, out);
      });
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
