// Average and max pooling over windows listed by the planner, which has clipped them to the input.
#pragma once

#include "cpu/primitives/shape_and_sum.h"

namespace metafast {
namespace METAFAST_ISA {

// Calls body(window of an output position, first element of its output row, first element of its image).
template <class T, class Body>
static void for_windows(const Frame<T>& f, const Node& node, const Body& body) {
  const Value &in = f.value(node.input[0]), &out = f.value(node.output);
  f.share(f.examples(), 16 * in.rows * in.ld, [&](int64_t begin, int64_t end, T*) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t r = 0; r < out.rows; ++r) body(node.windows[r], (n * out.rows + r) * out.ld, n * in.rows * in.ld);
  });
}

template <class T>
struct AvgPool2d : LinearMap<T, AvgPool2d<T>> {
  static void apply(const Frame<T>& f, const Node& node, const T* x, T* y, bool) {
    const Value& in = f.value(node.input[0]);
    for_windows(f, node, [&](const PoolWindow& window, int64_t o, int64_t image) {
      T* __restrict out = y + o;
      for (int64_t c = 0; c < in.ld; ++c) out[c] = T(0);
      for_positions(window, node, in.width, [&](int64_t position) {
        const T* __restrict from = x + image + position * in.ld;
        for (int64_t c = 0; c < in.ld; ++c) out[c] += from[c];
      });
      const T divisor = T(window.divisor);
      for (int64_t c = 0; c < in.ld; ++c) out[c] /= divisor;
    });
  }
  static void adjoint(const Frame<T>& f, const Node& node, const T* dy, T* dx, bool accumulate) {
    const Value& in = f.value(node.input[0]);
    if (!accumulate) memset(dx, 0, size_t(f.rows(node.input[0]) * in.ld) * sizeof(T));
    for_windows(f, node, [&](const PoolWindow& window, int64_t o, int64_t image) {
      const T* __restrict from = dy + o;
      const T divisor = T(window.divisor);
      for_positions(window, node, in.width, [&](int64_t position) {
        T* __restrict to = dx + image + position * in.ld;
        for (int64_t c = 0; c < in.ld; ++c) to[c] += from[c] / divisor;
      });
    });
  }
};

template <class T>
using AdaptiveAvgPool2d = AvgPool2d<T>;

// Saves the position of each maximum, as an integer in the tape; given those it is a linear map.
template <class T>
struct MaxPool2d : LinearMap<T, MaxPool2d<T>> {
  using Int = typename Bits<T>::Int;

  static void forward(const Frame<T>& f, const Node& node) {
    const Value& in = f.value(node.input[0]);
    const T* x = f.activation(node.input[0]);
    T* y = f.activation_out(node.output);
    Int* winners = reinterpret_cast<Int*>(f.tape + node.saved);
    for_windows(f, node, [&](const PoolWindow& window, int64_t o, int64_t image) {
      T* __restrict best = y + o;
      Int* __restrict winner = winners + o;
      bool first = true;
      for_positions(window, node, in.width, [&](int64_t position) {
        const T* __restrict from = x + image + position * in.ld;
        const Int here = Int(position);
        if (first)
          for (int64_t c = 0; c < in.ld; ++c) best[c] = from[c], winner[c] = here;
        else
          for (int64_t c = 0; c < in.ld; ++c) {
            const bool better = beats(from[c], best[c]);
            best[c] = better ? from[c] : best[c];
            winner[c] = better ? here : winner[c];
          }
        first = false;
      });
    });
  }

  static void apply(const Frame<T>& f, const Node& node, const T* x, T* y, bool) {
    const Value& in = f.value(node.input[0]);
    const Int* winners = reinterpret_cast<const Int*>(f.tape + node.saved);
    for_windows(f, node, [&](const PoolWindow& window, int64_t o, int64_t image) {
      T* __restrict out = y + o;
      const Int* __restrict winner = winners + o;
      for (int64_t c = 0; c < in.ld; ++c) out[c] = T(0);
      for_positions(window, node, in.width, [&](int64_t position) {
        const T* __restrict from = x + image + position * in.ld;
        for (int64_t c = 0; c < in.ld; ++c) out[c] = winner[c] == Int(position) ? from[c] : out[c];
      });
    });
  }

  static void adjoint(const Frame<T>& f, const Node& node, const T* dy, T* dx, bool accumulate) {
    const Value& in = f.value(node.input[0]);
    if (!accumulate) memset(dx, 0, size_t(f.rows(node.input[0]) * in.ld) * sizeof(T));
    const Int* winners = reinterpret_cast<const Int*>(f.tape + node.saved);
    for_windows(f, node, [&](const PoolWindow& window, int64_t o, int64_t image) {
      const T* __restrict from = dy + o;
      const Int* __restrict winner = winners + o;
      for_positions(window, node, in.width, [&](int64_t position) {
        T* __restrict to = dx + image + position * in.ld;
        for (int64_t c = 0; c < in.ld; ++c) to[c] += winner[c] == Int(position) ? from[c] : T(0);
      });
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
