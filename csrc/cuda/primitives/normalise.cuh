// Normalisation of each example by itself (csrc/cpu/primitives/normalise.h says what is computed). A warp takes a set, its
// lanes every 32nd element. A phase works on values or, once tangents exist, on dual numbers.
#pragma once

#include "cuda/primitives/batch_norm.cuh"

namespace metafast {
namespace METAFAST_ISA {

constexpr uint32_t kWarp = 32;

// What later phases and passes need of each set, and where elements stand.
template <class T>
struct SetFrame {
  const NormSets sets;
  const uint32_t ld;
  const bool tangent;
  T *mean, *inverse;                                           // in the tape
  T *mean_dot, *inverse_dot;                                   // in the tangent tape, if the input has a tangent
  T *mean_dy, *mean_dy_xhat, *mean_dy_dot, *mean_dy_xhat_dot;  // in scratch, from one phase to the next
  T* chunks;                                                   // in scratch, as well
  const T *x, *x_dot, *dy, *dy_dot, *gamma, *beta, *gamma_dot, *beta_dot;

  __device__ SetFrame(const Frame<T>& f, const Node& node)
      : sets(node, f.value(node.output), f.examples()), ld(uint32_t(f.value(node.output).ld)), tangent(f.tangent_tape) {
    const int64_t n = sets.count();
    mean = f.tape + node.saved, inverse = mean + n;
    x = f.activation(node.input[0]), x_dot = f.activation_dot(node.input[0]);
    mean_dot = x_dot ? f.tangent_tape + node.saved_dot : nullptr, inverse_dot = x_dot ? mean_dot + n : nullptr;
    mean_dy = f.scratch, mean_dy_xhat = mean_dy + n, mean_dy_dot = mean_dy + 2 * n, mean_dy_xhat_dot = mean_dy + 3 * n;
    chunks = f.scratch + 4 * n;
    dy = f.cotangent(node.output), dy_dot = tangent ? f.cotangent_dot(node.output) : nullptr;
    gamma = f.parameter(node.parameter[0]), beta = f.parameter(node.parameter[1]);
    gamma_dot = f.parameter_dot(node.parameter[0]), beta_dot = f.parameter_dot(node.parameter[1]);
  }

  // A number, `otherwise` where there is none, and its tangent, which is not read if S is a real number.
  template <class S>
  static __device__ S at(const T* value, const T* dot, uint32_t i, T otherwise = T(0)) {
    if constexpr (sizeof(S) == sizeof(T))
      return value ? value[i] : otherwise;
    else
      return channel(value, dot, i, otherwise);
  }
  template <class S>
  __device__ S xhat(uint32_t i, uint32_t set) const {
    return normalised(at<S>(x, x_dot, i), at<S>(mean, mean_dot, set), at<S>(inverse, inverse_dot, set));
  }
  template <class S>
  __device__ S scaled_dy(uint32_t i, uint32_t c) const {
    return at<S>(gamma, gamma_dot, c, T(1)) * at<S>(dy, dy_dot, i);
  }
  __device__ uint32_t set_of(uint32_t row, uint32_t c) const {
    return Divided(row, sets.positions).quotient * uint32_t(sets.groups) + Divided(c, sets.width).quotient;
  }

  // sum[] = over the elements of a set, of term(element, channel, sum); the same in all lanes.
  template <int SUMS, class Term>
  __device__ void sum_set(uint32_t set, uint32_t lane, T* sum, Term term) const {
    const Divided at(set, sets.groups);
    const uint32_t first = at.quotient * uint32_t(sets.positions), begin = at.rest * uint32_t(sets.width);
    for (int k = 0; k < SUMS; ++k) sum[k] = T(0);
    METAFAST_ROLLED for (uint32_t e = lane; e < uint32_t(sets.size()); e += kWarp) {
      const Divided inside(e, sets.width);
      term((first + inside.quotient) * ld + begin + inside.rest, begin + inside.rest, sum);
    }
    for (int k = 0; k < SUMS; ++k)
      for (uint32_t lanes = kWarp / 2; lanes > 0; lanes /= 2) sum[k] += __shfl_xor_sync(~0u, sum[k], lanes);
  }

  // Calls body(set, lane) with a warp for each set.
  template <class Body>
  __device__ void each_set(const Block& block, Body body) const {
    const uint32_t warps = uint32_t(block.threads) / kWarp;
    const uint32_t warp = uint32_t(block.tile) * warps + uint32_t(block.thread) / kWarp;
    METAFAST_ROLLED for (uint32_t set = warp; set < uint32_t(sets.count()); set += warps * uint32_t(block.tiles))
        body(set, uint32_t(block.thread) % kWarp);
  }
};

// Calls body(SetFrame, S()) with S a real number or, once tangents exist, a dual one.
template <class T, class Body>
static __device__ void with_sets(const Frame<T>& f, const Node& node, Body body) {
  const SetFrame<T> k(f, node);
  if (k.tangent)
    body(k, Dual<T>());
  else
    body(k, T());
}

template <class T>
struct NormaliseStatistics : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const SetFrame<T> k(f, node);
    const T size = T(k.sets.size());
    k.each_set(block, [&](uint32_t set, uint32_t lane) {
      T sum[2];
      if (k.tangent) {
        k.template sum_set<2>(set, lane, sum, [&](uint32_t i, uint32_t, T* to) {
          to[0] += k.x_dot[i];
          to[1] += k.x_dot[i] * (k.x[i] - k.mean[set]);
        });
        if (lane > 0) return;
        k.mean_dot[set] = node.centred ? sum[0] / size : T(0);
        k.inverse_dot[set] = inverse_deviation_tangent(k.inverse[set], sum[1] / size);
        return;
      }
      T mean = T(0);
      if (node.centred) {
        k.template sum_set<1>(set, lane, sum, [&](uint32_t i, uint32_t, T* to) { to[0] += k.x[i]; });
        mean = sum[0] / size;
      }
      k.template sum_set<1>(set, lane, sum,
                            [&](uint32_t i, uint32_t, T* to) { to[0] += (k.x[i] - mean) * (k.x[i] - mean); });
      if (lane == 0) k.mean[set] = mean, k.inverse[set] = inverse_deviation(node, sum[0] / size);
    });
  }
};

template <class T>
struct NormaliseForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    T* y = f.tangent_tape ? f.activation_dot(node.output) : f.activation_out(node.output);
    const uint32_t channels = uint32_t(f.value(node.output).channels);
    with_sets(f, node, [&](const SetFrame<T>& k, auto scalar) {
      using S = decltype(scalar);
      block.for_each(f.rows(node.output) * k.ld, [&](uint32_t i) {
        const Divided place(i, k.ld);
        const uint32_t c = place.rest, set = c < channels ? k.set_of(place.quotient, c) : 0;
        y[i] = c < channels
                   ? result(SetFrame<T>::template at<S>(k.gamma, k.gamma_dot, c, T(1)) * k.template xhat<S>(i, set) +
                            SetFrame<T>::template at<S>(k.beta, k.beta_dot, c))
                   : T(0);
      });
    });
  }
};

// The averages over a set of gamma dy and gamma dy xhat.
template <class T>
struct NormaliseSetSums : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    with_sets(f, node, [&](const SetFrame<T>& k, auto scalar) {
      using S = decltype(scalar);
      const T size = T(k.sets.size());
      k.each_set(block, [&](uint32_t set, uint32_t lane) {
        T sum[4];
        k.template sum_set<4>(set, lane, sum, [&](uint32_t i, uint32_t c, T* to) {
          const S g = k.template scaled_dy<S>(i, c), product = g * k.template xhat<S>(i, set);
          to[0] += value_of(g), to[1] += value_of(product);
          if constexpr (sizeof(S) != sizeof(T)) to[2] += g.d, to[3] += product.d;
        });
        if (lane > 0) return;
        k.mean_dy[set] = node.centred ? sum[0] / size : T(0);
        k.mean_dy_xhat[set] = sum[1] / size;
        if (!k.tangent) return;
        k.mean_dy_dot[set] = node.centred ? sum[2] / size : T(0);
        k.mean_dy_xhat_dot[set] = sum[3] / size;
      });
    });
  }
};

template <class T>
struct NormaliseInputGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    T* dx = f.tangent_tape ? f.cotangent_dot(node.input[0]) : f.cotangent(node.input[0]);
    const uint32_t channels = uint32_t(f.value(node.output).channels);
    with_sets(f, node, [&](const SetFrame<T>& k, auto scalar) {
      using S = decltype(scalar);
      using K = SetFrame<T>;
      block.for_each(f.rows(node.output) * k.ld, [&](uint32_t i) {
        const Divided place(i, k.ld);
        T d = T(0);
        if (place.rest < channels) {
          const uint32_t set = k.set_of(place.quotient, place.rest);
          d = result(normalised_input_gradient(k.template scaled_dy<S>(i, place.rest), k.template xhat<S>(i, set),
                                               K::template at<S>(k.inverse, k.inverse_dot, set),
                                               K::template at<S>(k.mean_dy, k.mean_dy_dot, set),
                                               K::template at<S>(k.mean_dy_xhat, k.mean_dy_xhat_dot, set)));
        }
        put(dx + i, d, node.input_mode[0]);
      });
    });
  }
};

// The gradients of gamma and beta: chunks of rows, then the chunks.
template <class T>
struct NormaliseColumnSums : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const uint32_t channels = uint32_t(f.value(node.output).channels);
    with_sets(f, node, [&](const SetFrame<T>& k, auto scalar) {
      using S = decltype(scalar);
      sum_chunks<2>(block, f.rows(node.output), int32_t(k.ld), k.chunks, [&](uint32_t i, uint32_t c, T* sum) {
        if (c >= channels) return;
        const S g = SetFrame<T>::template at<S>(k.dy, k.dy_dot, i);
        sum[0] += result(g * k.template xhat<S>(i, k.set_of(Divided(i, k.ld).quotient, c)));
        sum[1] += result(g);
      });
    });
  }
};

template <class T>
struct NormaliseColumnFold : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const SetFrame<T> k(f, node);
    block.for_each(k.ld, [&](uint32_t c) {
      T sum[2];
      add_chunks<2>(block, f.rows(node.output), int32_t(k.ld), c, k.chunks, sum);
      for (int p = 0; p < 2; ++p)
        if (wanted(node.parameter_mode[p])) {
          T* to = k.tangent ? f.parameter_gradient_dot(node.parameter[p]) : f.parameter_gradient(node.parameter[p]);
          put(to + c, sum[p], node.parameter_mode[p]);
        }
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
