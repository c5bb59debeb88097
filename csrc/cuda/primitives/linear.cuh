// y = x W + b, with W standing as [inputs][outputs]. The tangent of each product is the same product twice.
#pragma once

#include "cuda/primitives/weight_gradient.cuh"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct LinearOperands {
  const Frame<T>& f;
  const Node& node;
  const Value &in, &out;
  __device__ LinearOperands(const Frame<T>& frame, const Node& its_node)
      : f(frame), node(its_node), in(frame.value(its_node.input[0])), out(frame.value(its_node.output)) {}

  __device__ const T* x() const { return f.activation(node.input[0]); }
  __device__ const T* x_dot() const { return f.activation_dot(node.input[0]); }
  __device__ const T* w() const { return f.parameter(node.parameter[0]); }
  __device__ const T* w_dot() const { return f.parameter_dot(node.parameter[0]); }
  __device__ int64_t rows() const { return f.rows(node.output); }

  // Left and right operands of the three products.
  __device__ Strided<T> by_row(const T* x) const { return {x, in.ld, 1}; }
  __device__ Strided<T> weight(const T* w) const { return {w, out.ld, 1}; }
  __device__ Strided<T> by_column(const T* x) const { return {x, 1, in.ld}; }
  __device__ Strided<T> cotangent(const T* dy) const { return {dy, out.ld, 1}; }
  __device__ Strided<T> weight_transposed(const T* w) const { return {w, 1, out.ld}; }

  __device__ Product<T> forward(T* y, const T* bias) const {
    return {{}, {}, 0, bias, y, rows(), out.ld, out.ld, in.channels, false};
  }
  __device__ Product<T> weight_gradient(T* dw) const {
    return {{}, {}, 0, nullptr, dw, in.channels, out.ld, out.ld, rows(), accumulates(node.parameter_mode[0])};
  }
  __device__ Product<T> input_gradient(T* dx) const {
    return {
        {}, {}, 0, nullptr, dx, rows(), in.channels, in.ld_cotangent, out.channels, accumulates(node.input_mode[0])};
  }
  __device__ static bool accumulates(GradientMode mode) { return mode == GradientMode::kAccumulate; }
};

template <class T>
struct LinearForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const LinearOperands<T> o(f, node);
    Product<T> p = o.forward(f.activation_out(node.output), f.parameter(node.parameter[1]));
    p.add(o.by_row(o.x()), o.weight(o.w()));
    product(p, block);
  }
};

template <class T>
struct LinearTangentForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const LinearOperands<T> o(f, node);
    Product<T> p = o.forward(f.activation_dot(node.output), f.parameter_dot(node.parameter[1]));
    if (o.x_dot()) p.add(o.by_row(o.x_dot()), o.weight(o.w()));
    if (o.w_dot()) p.add(o.by_row(o.x()), o.weight(o.w_dot()));
    product(p, block);
  }
};

// Parts of the sum over rows, as for a convolution.
template <class T>
static __device__ void linear_weight_gradient(const Frame<T>& f, const Node& node, const Block& block) {
  const LinearOperands<T> o(f, node);
  const WeightGradient<T> g(f, node, block);
  METAFAST_ROLLED for (int32_t part = 0; part < g.parts; ++part) {
    const PartOfPositions range(uint32_t(o.rows()), uint32_t(part), g.parts);
    Product<T> p = o.weight_gradient(g.to + uint32_t(part) * g.size);
    p.k = range.end - range.begin;
    p.accumulate = g.accumulate;
    const int64_t left = int64_t(range.begin) * o.in.ld, right = int64_t(range.begin) * o.out.ld;
    p.add(o.by_column(g.left(0) + left), o.cotangent(g.right(0) + right));
    if (g.terms == 2) p.add(o.by_column(g.left(1) + left), o.cotangent(g.right(1) + right));
    product(p, block);
  }
}

template <class T>
struct LinearWeightGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    linear_weight_gradient(f, node, block);
  }
};

template <class T>
struct LinearInputGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const LinearOperands<T> o(f, node);
    Product<T> p = o.input_gradient(f.cotangent(node.input[0]));
    p.add(o.cotangent(f.cotangent(node.output)), o.weight_transposed(o.w()));
    product(p, block);
  }
};

template <class T>
struct LinearTangentInputGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const LinearOperands<T> o(f, node);
    Product<T> p = o.input_gradient(f.cotangent_dot(node.input[0]));
    p.add(o.cotangent(f.cotangent_dot(node.output)), o.weight_transposed(o.w()));
    if (o.w_dot()) p.add(o.cotangent(f.cotangent(node.output)), o.weight_transposed(o.w_dot()));
    product(p, block);
  }
};

// Sums of columns. In front of BatchNorm on batch statistics they are zero, as csrc/cpu/primitives/bilinear.h explains.
template <class T>
static __device__ void bias_gradient(const Frame<T>& f, const Node& node, const Block& block, const T* dy, T* db) {
  const int64_t ld = f.value(node.output).ld, rows = f.rows(node.output);
  block.for_each(ld, [&](uint32_t c) {
    T total = node.bias_cancels ? T(0) * dy[c] : T(0);
    if (!node.bias_cancels)
      for (int64_t r0 = 0; r0 < rows; r0 += kProductDepth) {
        const int64_t r1 = r0 + kProductDepth < rows ? r0 + kProductDepth : rows;
        T part = T(0);
        for (int64_t r = r0; r < r1; ++r) part += dy[r * ld + c];
        total += part;
      }
    put(db + c, total, node.parameter_mode[1]);
  });
}

template <class T>
struct LinearBiasGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    bias_gradient<T>(f, node, block, f.cotangent(node.output), f.parameter_gradient(node.parameter[1]));
  }
};

template <class T>
struct LinearTangentBiasGradient : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    bias_gradient<T>(f, node, block, f.cotangent_dot(node.output), f.parameter_gradient_dot(node.parameter[1]));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
