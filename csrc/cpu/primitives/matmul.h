// y = A B of two computed values, matrix by matrix, or in one product where all examples share B. It is bilinear: the
// tangent of each of its products is the same product twice.
#pragma once

#include "cpu/frame.h"
#include "cpu/kernels/transpose.h"

namespace metafast {
namespace METAFAST_ISA {

// The matrices of a value: `ld` from row to row, and so far from example to example and from batch to batch.
template <class T>
struct Matrices {
  T* data;
  int64_t ld, example, batch;
  T* at(int64_t n, int64_t i) const { return data + n * example + i * batch; }
};

// C (+)= L R of matrices [m, k] and [k, n], either of which may stand transposed. C may stand for all examples' sum.
template <class T>
struct MatrixProduct {
  Matrices<const T> left, right;
  Matrices<T> to;
  bool left_transposed, right_transposed;
  int64_t m, n, k;
  bool clears_pads;  // of C, where those of R are not zero

  // room: [k][ld of C]
  void one(int64_t example, int64_t batch, Start start, T* room) const {
    T* c = to.at(example, batch);
    multiply<T>(gathered(left.at(example, batch)), by_depth(right.at(example, batch), room), ld_by_depth(), c, to.ld, m,
                to.ld, k, start);
    clear(c);
  }
  // In parts that idle threads take.
  void whole(const Sharing<T>& share, Start start, T* room) const {
    multiply<T>(share, gathered(left.data), by_depth(right.data, room), ld_by_depth(), to.data, to.ld, m, to.ld, k,
                start);
    clear(to.data);
  }

 private:
  Gather<T> gathered(const T* data) const {
    const int32_t ld = int32_t(left.ld);
    return {data, nullptr, nullptr, left_transposed ? 1 : ld, left_transposed ? ld : 1};
  }
  const T* by_depth(const T* data, T* room) const {
    if (!right_transposed) return data;
    transpose(data, right.ld, n, k, room, to.ld);
    return room;
  }
  int64_t ld_by_depth() const { return right_transposed ? to.ld : right.ld; }
  void clear(T* c) const {
    for (int64_t r = 0; clears_pads && r < m; ++r) zero_pads(c + r * to.ld, n, to.ld);
  }
};

template <class T>
struct Matmul {
  static void forward(const Frame<T>& f, const Node& node) {
    Pass(f, node).product(f.activation(node.input[0]), f.activation(node.input[1]), f.activation_out(node.output),
                          GradientMode::kOverwrite);
  }

  static void tangent_forward(const Frame<T>& f, const Node& node) {
    const Pass pass(f, node);
    const T *a_dot = f.activation_dot(node.input[0]), *b_dot = f.activation_dot(node.input[1]);
    T* y_dot = f.activation_dot(node.output);
    if (a_dot) pass.product(a_dot, f.activation(node.input[1]), y_dot, GradientMode::kOverwrite);
    if (b_dot)
      pass.product(f.activation(node.input[0]), b_dot, y_dot,
                   a_dot ? GradientMode::kAccumulate : GradientMode::kOverwrite);
  }

  static void backward(const Frame<T>& f, const Node& node) {
    const Pass pass(f, node);
    const T* dy = f.cotangent(node.output);
    for (int i = 0; i < 2; ++i)  // one after the other: they may be the same value
      if (wanted(node.input_mode[i]))
        pass.gradient(i, dy, f.activation(node.input[1 - i]), f.cotangent(node.input[i]), node.input_mode[i]);
  }

  static void tangent_backward(const Frame<T>& f, const Node& node) {
    const Pass pass(f, node);
    for (int i = 0; i < 2; ++i) {
      if (!wanted(node.input_mode[i])) continue;
      T* to = f.cotangent_dot(node.input[i]);
      const int other = node.input[1 - i];
      pass.gradient(i, f.cotangent_dot(node.output), f.activation(other), to, node.input_mode[i]);
      if (const T* other_dot = f.activation_dot(other))
        pass.gradient(i, f.cotangent(node.output), other_dot, to, GradientMode::kAccumulate);
    }
  }

 private:
  struct Pass {
    const Frame<T>& f;
    const Node& node;
    const Value &a, &b, &y;
    const int64_t batches;
    const bool transposed, whole;  // B stands as [N, K]; the rows of all examples make one product
    const int64_t examples, m, n, k;

    Pass(const Frame<T>& f, const Node& node)
        : f(f),
          node(node),
          a(f.value(node.input[0])),
          b(f.value(node.input[1])),
          y(f.value(node.output)),
          batches(int64_t(node.attribute[0])),
          transposed(node.attribute[1] != 0),
          whole(b.shared && batches == 1),
          examples(whole ? 1 : f.examples(node.output)),
          m(whole ? f.rows(node.output) : y.rows / batches),
          n(y.channels),
          k(a.channels) {}

    void product(const T* left, const T* right, T* to, GradientMode mode) const {
      run({of(a, a.ld, left), of(b, b.ld, right), of(y, y.ld, to), false, transposed, m, n, k, false}, y, mode);
    }

    // Of operand i, whose partner is `other`: dA = dy B', dB = A' dy, which stands transposed if B does.
    void gradient(int i, const T* dy, const T* other, T* to, GradientMode mode) const {
      const auto cotangent = of(y, y.ld_cotangent, dy);
      if (i == 0)
        run({cotangent, of(b, b.ld, other), of(a, a.ld_cotangent, to), false, !transposed, m, k, n, transposed}, a,
            mode);
      else if (transposed)
        run({cotangent, of(a, a.ld, other), of(b, b.ld_cotangent, to), true, false, n, k, m, true}, b, mode);
      else
        run({of(a, a.ld, other), cotangent, of(b, b.ld_cotangent, to), true, false, k, n, m, false}, b, mode);
    }

   private:
    template <class E>
    Matrices<E> of(const Value& v, int64_t ld, E* data) const {
      return {data, ld, v.shared ? 0 : v.rows * ld, v.rows / batches * ld};
    }

    void run(const MatrixProduct<T>& p, const Value& target, GradientMode mode) const {
      const Start start = begin_with(mode);
      if (whole) return p.whole(f.share, start, (node.recomputes_transpose ? f.transient : f.tape) + node.saved);
      const int64_t sums = target.shared ? examples : 1;  // so many make one
      f.share(examples / sums * batches, sums * p.m * p.n * p.k, [&](int64_t begin, int64_t end, T* scratch) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t e = 0; e < sums; ++e)
            p.one(i / batches + e, i % batches, e > 0 ? Start::kAccumulate : start, scratch);
      });
    }
  };
};

}  // namespace METAFAST_ISA
}  // namespace metafast
