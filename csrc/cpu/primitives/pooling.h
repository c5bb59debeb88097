// Average and max pooling over windows listed by the planner, which has clipped them to the input.
#pragma once

#include <type_traits>

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

// Calls body(column, zero) for every vector of columns, and then for each that is left: `zero` has the type to work with.
template <class T, class Body>
static inline __attribute__((always_inline)) void each_column(int64_t ld, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<T> <= ld; c += kLanes<T>) body(c, Vector<T>{});
  for (; c < ld; ++c) body(c, T(0));
}

template <class E>
static inline __attribute__((always_inline)) E read(const void* from) {
  E value;
  memcpy(&value, from, sizeof value);
  return value;
}
template <class E>
static inline __attribute__((always_inline)) void write(void* to, E value) {
  memcpy(to, &value, sizeof value);
}

template <class T>
struct AvgPool2d : LinearMap<T, AvgPool2d<T>> {
  static void apply(const Frame<T>& f, const Node& node, const T* x, T* y, bool) {
    const int64_t width = f.value(node.input[0]).width, ld = f.value(node.input[0]).ld;
    for_windows(f, node, [=, &node](const PoolWindow& window, int64_t o, int64_t image) {
      const T divisor = T(window.divisor);
      each_column<T>(ld, [&](int64_t c, auto sum) {
        for_positions(window, node, width,
                      [&](int64_t position) { sum += read<decltype(sum)>(x + image + position * ld + c); });
        write(y + o + c, sum / divisor);
      });
    });
  }
  static void adjoint(const Frame<T>& f, const Node& node, const T* dy, T* dx, bool accumulate) {
    const int64_t width = f.value(node.input[0]).width, ld = f.value(node.input[0]).ld;
    if (!accumulate) memset(dx, 0, size_t(f.rows(node.input[0]) * ld) * sizeof(T));
    for_windows(f, node, [=, &node](const PoolWindow& window, int64_t o, int64_t image) {
      const T divisor = T(window.divisor);
      each_column<T>(ld, [&](int64_t c, auto zero) {
        using E = decltype(zero);
        const E each = read<E>(dy + o + c) / divisor;
        for_positions(window, node, width, [&](int64_t position) {
          T* const to = dx + image + position * ld + c;
          write(to, read<E>(to) + each);
        });
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

  // What says which position of a window won: an integer for each number.
  template <class E>
  using Winner = std::conditional_t<std::is_same<E, T>::value, Int, decltype(E{} == E{})>;

  static void forward(const Frame<T>& f, const Node& node) {
    const int64_t width = f.value(node.input[0]).width, ld = f.value(node.input[0]).ld;
    const T* x = f.activation(node.input[0]);
    T* y = f.activation_out(node.output);
    Int* winners = reinterpret_cast<Int*>(f.tape + node.saved);
    for_windows(f, node, [=, &node](const PoolWindow& window, int64_t o, int64_t image) {
      const int64_t first = window.row_begin * width + window.column_begin;
      each_column<T>(ld, [&](int64_t c, auto zero) {
        using E = decltype(zero);
        E best = read<E>(x + image + first * ld + c);
        auto winner = Winner<E>{} + Int(first);
        for_positions(window, node, width, [&](int64_t position) {
          const E at = read<E>(x + image + position * ld + c);
          const auto better = beats(at, best);
          best = better ? at : best;
          winner = better ? Winner<E>{} + Int(position) : winner;
        });
        write(y + o + c, best);
        write<Winner<E>>(winners + o + c, winner);
      });
    });
  }

  static void apply(const Frame<T>& f, const Node& node, const T* x, T* y, bool) {
    const int64_t width = f.value(node.input[0]).width, ld = f.value(node.input[0]).ld;
    const Int* winners = reinterpret_cast<const Int*>(f.tape + node.saved);
    for_windows(f, node, [=, &node](const PoolWindow& window, int64_t o, int64_t image) {
      each_column<T>(ld, [&](int64_t c, auto out) {
        using E = decltype(out);
        const auto winner = read<Winner<E>>(winners + o + c);
        for_positions(window, node, width, [&](int64_t position) {
          out = winner == Int(position) ? read<E>(x + image + position * ld + c) : out;
        });
        write(y + o + c, out);
      });
    });
  }

  static void adjoint(const Frame<T>& f, const Node& node, const T* dy, T* dx, bool accumulate) {
    const int64_t width = f.value(node.input[0]).width, ld = f.value(node.input[0]).ld;
    if (!accumulate) memset(dx, 0, size_t(f.rows(node.input[0]) * ld) * sizeof(T));
    const Int* winners = reinterpret_cast<const Int*>(f.tape + node.saved);
    for_windows(f, node, [=, &node](const PoolWindow& window, int64_t o, int64_t image) {
      each_column<T>(ld, [&](int64_t c, auto zero) {
        using E = decltype(zero);
        const E from = read<E>(dy + o + c);
        const auto winner = read<Winner<E>>(winners + o + c);
        for_positions(window, node, width, [&](int64_t position) {
          T* const to = dx + image + position * ld + c;
          write(to, read<E>(to) + (winner == Int(position) ? from : zero));
        });
      });
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
