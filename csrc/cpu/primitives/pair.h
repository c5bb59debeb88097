// The four passes of a function of two elements, whose operands broadcast.
#pragma once

#include <string.h>

#include "cpu/frame.h"
#include "program/primitives.h"

namespace metafast {
namespace METAFAST_ISA {

// What becomes of a term of a cotangent: it is written, added, or added to the one element that was broadcast.
enum class Put { kWrite, kAdd, kSum };

// Rows of the two operands. An element is `width` numbers, of so many tasks; a row of one element stands for a whole row.
// Tasks by themselves and packs call the same code, which is compiled once.
template <class E, class Function, bool kIsLinear>
struct PairRows {
  const E *a, *b, *a_dot, *b_dot;
  bool one_a, one_b;
  int64_t channels, width;

  METAFAST_OUTLINED void forward(E* y) const {
    each([=](int64_t i, int64_t j, int64_t k) { y[k] = Function::value(a[i], b[j]); });
  }
  METAFAST_OUTLINED void tangent_forward(E* y_dot) const {
    each([=](int64_t i, int64_t j, int64_t k) {
      y_dot[k] = Function::left(a[i], b[j]) * a_dot[i] + Function::right(a[i], b[j]) * b_dot[j];
    });
  }
  // The partial derivative by operand `which` times dy.
  template <int which>
  METAFAST_OUTLINED void backward(const E* dy, E* to, Put put) const {
    reverse(to, put, [=](int64_t i, int64_t j, int64_t k) { return partial<which>(a[i], b[j]) * dy[k]; });
  }
  template <int which>
  METAFAST_OUTLINED void tangent_backward(const E* dy, const E* dy_dot, E* to, Put put) const {
    if constexpr (kIsLinear) return backward<which>(dy_dot, to, put);
    reverse(to, put, [=](int64_t i, int64_t j, int64_t k) {
      const Dual<E> d = partial<which>(Dual<E>(a[i], a_dot[i]), Dual<E>(b[j], b_dot[j]));
      return d.v * dy_dot[k] + d.d * dy[k];
    });
  }

 private:
  template <int which, class S>
  static S partial(S p, S q) {
    if constexpr (which == 0)
      return Function::left(p, q);
    else
      return Function::right(p, q);
  }

  template <class Term>
  void reverse(E* to, Put put, Term term) const {
    if (put == Put::kWrite)
      each([=](int64_t i, int64_t j, int64_t k) { to[k] = term(i, j, k); });
    else if (put == Put::kAdd)
      each([=](int64_t i, int64_t j, int64_t k) { to[k] += term(i, j, k); });
    else
      for (int64_t k = 0; k < channels * width; ++k)
        to[k % width] += term(one_a ? k % width : k, one_b ? k % width : k, k);
  }

  // Calls body(index of a, of b, of the output) for every element of a row.
  template <class Body>
  void each(Body body) const {
    const int64_t n = channels * width;
    if (!one_a && !one_b)
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) body(i, i, i);
    else if (width > 1)
      for (int64_t i = 0; i < n; ++i) body(one_a ? i % width : i, one_b ? i % width : i, i);
    else if (!one_b)
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) body(0, i, i);
    else if (!one_a)
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) body(i, 0, i);
    else
      for (int64_t i = 0; i < n; ++i) body(0, 0, i);
  }
};

template <class T, class Function, uint32_t kTraits>
struct Pair {
  using E = Element<T>;
  using Rows = PairRows<E, Function, (kTraits & kLinear) != 0>;
  static constexpr int64_t W = kTasks<T>;
  static E* elements(T* p) { return reinterpret_cast<E*>(p); }
  static const E* elements(const T* p) { return reinterpret_cast<const E*>(p); }

  static void forward(const Frame<T>& f, const Node& node) {
    E* y = elements(f.activation_out(node.output));
    Pass{f, node}.each_row([&](const Pass& p, const Row& row, T*) {
      p.rows(row, nullptr).forward(y + p.in_output(row));
      p.clear(y + p.in_output(row), p.out);
    });
  }

  static void tangent_forward(const Frame<T>& f, const Node& node) {
    E* y_dot = elements(f.activation_dot(node.output));
    Pass{f, node}.each_row([&](const Pass& p, const Row& row, T* zeros) {
      p.rows(row, zeros).tangent_forward(y_dot + p.in_output(row));
      p.clear(y_dot + p.in_output(row), p.out);
    });
  }

  static void backward(const Frame<T>& f, const Node& node) { both(Pass{f, node}, false); }
  static void tangent_backward(const Frame<T>& f, const Node& node) { both(Pass{f, node}, true); }

 private:
  // A row of the output; or, where nothing broadcasts, any stretch of it, pads and all.
  struct Row {
    int64_t n, r, offset, channels;
  };

  struct Pass {
    const Frame<T>& f;
    const Node& node;
    const Value &a, &b, &out;
    const bool whole;

    Pass(const Frame<T>& f, const Node& node)
        : f(f),
          node(node),
          a(f.value(node.input[0])),
          b(f.value(node.input[1])),
          out(f.value(node.output)),
          whole((kTraits & kTakesPads) && alike(a) && alike(b)) {}

    bool alike(const Value& v) const {
      return v.shared == out.shared && v.rows == out.rows && v.channels == out.channels && v.ld == out.ld &&
             v.ld_cotangent == out.ld;
    }
    static int64_t at(const Value& v, int64_t ld, const Row& row) {
      return ((v.shared ? 0 : row.n * v.rows) + (v.rows > 1 ? row.r : 0)) * ld * W;
    }
    int64_t in_output(const Row& row) const { return whole ? row.offset : at(out, out.ld, row); }
    int64_t in_operand(const Value& v, int64_t ld, const Row& row) const { return whole ? row.offset : at(v, ld, row); }

    // With tangents if there are zeros, which stand for one that is known to be zero.
    Rows rows(const Row& row, const T* zeros) const {
      const auto tangent = [&](int v, int64_t at) -> const E* {
        const T* dot = zeros ? f.activation_dot(v) : nullptr;
        return dot ? elements(dot) + at : elements(zeros);
      };
      const int64_t at_a = in_operand(a, a.ld, row), at_b = in_operand(b, b.ld, row);
      return {elements(f.activation(node.input[0])) + at_a,
              elements(f.activation(node.input[1])) + at_b,
              tangent(node.input[0], at_a),
              tangent(node.input[1], at_b),
              a.channels == 1 && !whole,
              b.channels == 1 && !whole,
              row.channels,
              W};
    }
    void clear(E* row, const Value& v) const {
      for (int64_t i = v.channels * W; !whole && i < v.ld_cotangent * W; ++i) row[i] = E(0);
    }

    // Calls body(this, row, room of one row for zeros) for all rows, side by side where that pays.
    template <class Body>
    void each_row(Body body) const {
      const int64_t all = f.rows(node.output), stretch = 256;
      if (whole) {
        const int64_t size = all * out.ld;
        f.share((size + stretch - 1) / stretch, stretch, [&](int64_t begin, int64_t end, T* scratch) {
          memset(static_cast<void*>(scratch), 0, size_t(stretch) * sizeof(T));
          for (int64_t i = begin * stretch; i < end * stretch && i < size; i += stretch)
            body(*this, Row{0, 0, i * W, size - i < stretch ? size - i : stretch}, scratch);
        });
        return;
      }
      f.share(all, out.ld, [&](int64_t begin, int64_t end, T* scratch) {
        memset(static_cast<void*>(scratch), 0, size_t(out.ld) * sizeof(T));
        for (int64_t i = begin; i < end; ++i) body(*this, Row{i / out.rows, i % out.rows, 0, out.channels}, scratch);
      });
    }
  };

  static void both(const Pass& p, bool tangents) {
    if (wanted(p.node.input_mode[0])) reverse<0>(p, tangents);
    if (wanted(p.node.input_mode[1])) reverse<1>(p, tangents);
  }

  // The cotangent of an operand, or its tangent: the partial derivative times the output's, summed where it broadcasts.
  template <int which>
  static void reverse(const Pass& p, bool tangents) {
    const Frame<T>& f = p.f;
    const int v = p.node.input[which];
    const Value &in = f.value(v), &out = p.out;
    T* const cotangent = tangents ? f.cotangent_dot(v) : f.cotangent(v);
    E* const to = elements(cotangent);
    const bool keep = p.node.input_mode[which] == GradientMode::kAccumulate;
    if (in.shared == out.shared && in.rows == out.rows && in.channels == out.channels) {
      p.each_row([&](const Pass&, const Row& row, T* zeros) {
        E* const d = to + p.in_operand(in, in.ld_cotangent, row);
        reverse_row<which>(p, row, tangents, zeros, d, keep ? Put::kAdd : Put::kWrite);
        if (!keep) p.clear(d, in);
      });
      return;
    }
    // Examples side by side, if each has a sum of its own.
    const int64_t sums = in.shared ? 1 : f.examples(), each = f.examples(p.node.output) / sums;
    const int64_t size = in.rows * in.ld_cotangent;
    f.share(sums, each * out.rows * out.ld, [&](int64_t begin, int64_t end, T* zeros) {
      memset(static_cast<void*>(zeros), 0, size_t(out.ld) * sizeof(T));
      if (!keep) memset(static_cast<void*>(cotangent + begin * size), 0, size_t((end - begin) * size) * sizeof(T));
      const Put put = in.channels < out.channels ? Put::kSum : Put::kAdd;
      for (int64_t n = begin * each; n < end * each; ++n)
        for (int64_t r = 0; r < out.rows; ++r) {
          const Row row{n, r, 0, out.channels};
          reverse_row<which>(p, row, tangents, zeros, to + p.in_operand(in, in.ld_cotangent, row), put);
        }
    });
  }

  template <int which>
  static void reverse_row(const Pass& p, const Row& row, bool tangents, const T* zeros, E* to, Put put) {
    const E* dy = elements(p.f.cotangent(p.node.output)) + p.in_output(row);
    if (!tangents) return p.rows(row, nullptr).template backward<which>(dy, to, put);
    const E* dy_dot = elements(p.f.cotangent_dot(p.node.output)) + p.in_output(row);
    p.rows(row, zeros).template tangent_backward<which>(dy, dy_dot, to, put);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
