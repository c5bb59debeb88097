// Softmax over the channels of each row, and its logarithm: a warp takes a row.
#pragma once

#include "cuda/primitives/normalise.cuh"
#include "formulas/softmax.h"

namespace metafast {
namespace METAFAST_ISA {

template <class Body>
static __device__ void with_softmax(const Node& node, Body body) {
  if (node.op == Op::kLogSoftmax)
    body(SoftmaxRow<true>());
  else
    body(SoftmaxRow<false>());
}

template <class T>
static __device__ T warp_sum(T x) {
  for (uint32_t lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

// Calls body(first element of a row, lane) with a warp for each row.
template <class Body>
static __device__ void each_row(const Block& block, int64_t rows, int32_t ld, Body body) {
  const uint32_t warps = uint32_t(block.threads) / kWarp;
  const uint32_t warp = uint32_t(block.tile) * warps + uint32_t(block.thread) / kWarp;
  METAFAST_ROLLED for (uint32_t r = warp; r < uint32_t(rows); r += warps * uint32_t(block.tiles))
      body(r * uint32_t(ld), uint32_t(block.thread) % kWarp);
}

template <class T>
struct SoftmaxForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value& out = f.value(node.output);
    const T *x = f.activation(node.input[0]), *x_dot = f.activation_dot(node.input[0]);
    const T* y = f.activation(node.output);
    T* to = f.tangent_tape ? f.activation_dot(node.output) : f.activation_out(node.output);
    const uint32_t channels = uint32_t(out.channels), ld = uint32_t(out.ld);
    with_softmax(node, [&](auto row) {
      using Row = decltype(row);
      each_row(block, f.rows(node.output), out.ld, [&](uint32_t i, uint32_t lane) {
        T most = x[i], sum = T(0);
        METAFAST_ROLLED for (uint32_t c = lane; c < channels; c += kWarp) most = x[i + c] > most ? x[i + c] : most;
        for (uint32_t lanes = kWarp / 2; lanes > 0; lanes /= 2) {
          const T other = __shfl_xor_sync(~0u, most, lanes);
          most = other > most ? other : most;
        }
        most = Row::origin(most, node.attribute[0] != 0);
        METAFAST_ROLLED for (uint32_t c = lane; c < channels; c += kWarp) sum +=
            f.tangent_tape ? Row::probability(y[i + c]) * x_dot[i + c] : exp(x[i + c] - most);
        sum = warp_sum(sum);
        METAFAST_ROLLED for (uint32_t c = lane; c < ld; c += kWarp) to[i + c] =
            c >= channels    ? T(0)
            : f.tangent_tape ? Row::tangent(Row::probability(y[i + c]), x_dot[i + c], sum)
                             : Row::value(x[i + c] - most, sum);
      });
    });
  }
};

template <class T>
struct SoftmaxBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    with_softmax(node, [&](auto row) {
      if (f.tangent_tape)
        pull<decltype(row), Dual<T>>(f, node, block, f.cotangent_dot(node.input[0]));
      else
        pull<decltype(row), T>(f, node, block, f.cotangent(node.input[0]));
    });
  }

 private:
  template <class Row, class S>
  static __device__ void pull(const Frame<T>& f, const Node& node, const Block& block, T* dx) {
    const Value& out = f.value(node.output);
    const T *y = f.activation(node.output), *y_dot = f.activation_dot(node.output);
    const T *dy = f.cotangent(node.output), *dy_dot = f.tangent_tape ? f.cotangent_dot(node.output) : nullptr;
    const uint32_t channels = uint32_t(out.channels), ld = uint32_t(out.ld);
    each_row(block, f.rows(node.output), out.ld, [&](uint32_t i, uint32_t lane) {
      const auto p = [&](uint32_t c) { return Row::probability(SetFrame<T>::template at<S>(y, y_dot, i + c)); };
      const auto g = [&](uint32_t c) { return SetFrame<T>::template at<S>(dy, dy_dot, i + c); };
      S sum = S(T(0));
      METAFAST_ROLLED for (uint32_t c = lane; c < channels; c += kWarp) sum += Row::pulled(p(c), g(c));
      if constexpr (sizeof(S) == sizeof(T))
        sum = warp_sum(sum);
      else
        sum = S(warp_sum(sum.v), warp_sum(sum.d));
      METAFAST_ROLLED for (uint32_t c = lane; c < ld; c += kWarp)
          put(dx + i + c, c < channels ? result(Row::input_gradient(p(c), g(c), sum)) : T(0), node.input_mode[0]);
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
