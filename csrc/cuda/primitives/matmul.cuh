// y = A B of two computed values, matrix by matrix: every thread makes one element.
#pragma once

#include "cuda/primitives/columns.cuh"
#include "cuda/primitives/product.cuh"

namespace metafast {
namespace METAFAST_ISA {

// Steps through the matrices of a value: along the index that the result has too, along that which is summed over, from
// example to example, from batch to batch.
struct MatrixSteps {
  uint32_t kept, summed, example, batch;
  __device__ MatrixSteps(const Value& v, int32_t ld, bool by_row, uint32_t batches)
      : kept(by_row ? uint32_t(ld) : 1u),
        summed(by_row ? 1u : uint32_t(ld)),
        example(v.shared ? 0u : uint32_t(v.rows * ld)),
        batch(uint32_t(v.rows) / batches * uint32_t(ld)) {}
  __device__ uint32_t operator()(uint32_t n, uint32_t i, uint32_t index) const {
    return n * example + i * batch + index * kept;
  }
};

// C (+)= L R, summed over up to two terms and, where C is shared, over examples.
template <class T>
struct MatrixTerms {
  MatrixSteps left_steps, right_steps;
  uint32_t m, n, k, batches, examples;
  const T *left[2], *right[2];
  int terms;

  __device__ void add(const T* l, const T* r) {
    const int second = terms++;  // as Product::add does
    if (second)
      left[1] = l, right[1] = r;
    else
      left[0] = l, right[0] = r;
  }

  __device__ T sum(const T* l, const T* r) const {
    T total = T(0);
    METAFAST_ROLLED for (uint32_t k0 = 0; k0 < k; k0 += uint32_t(kProductDepth)) {
      const uint32_t k1 = k0 + uint32_t(kProductDepth) < k ? k0 + uint32_t(kProductDepth) : k;
      T part = T(0);
      for (uint32_t i = k0; i < k1; ++i) part += l[i * left_steps.summed] * r[i * right_steps.summed];
      total += part;
    }
    return total;
  }

  __device__ void run(const Block& block, T* to, const Value& target, int32_t ld, GradientMode mode) const {
    const uint32_t sums = target.shared ? examples : 1u;
    block.for_each(examples / sums * target.rows * ld, [&](uint32_t o) {
      const Divided at(o, ld), matrix(at.quotient, m), which(matrix.quotient, batches);
      T total = T(0);
      METAFAST_ROLLED for (uint32_t e = 0; at.rest < n && e < sums; ++e) {
        const uint32_t from = left_steps(which.quotient + e, which.rest, matrix.rest);
        const uint32_t with = right_steps(which.quotient + e, which.rest, at.rest);
        METAFAST_ROLLED for (int term = 0; term < terms; ++term) total +=
            sum((term ? left[1] : left[0]) + from, (term ? right[1] : right[0]) + with);
      }
      put(to + o, total, mode);
    });
  }
};

template <class T>
struct MatmulForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &a = f.value(node.input[0]), &b = f.value(node.input[1]), &y = f.value(node.output);
    const uint32_t batches = uint32_t(node.attribute[0]);
    const bool transposed = node.attribute[1] != 0;
    MatrixTerms<T> p{{a, a.ld, true, batches},
                     {b, b.ld, transposed, batches},
                     uint32_t(y.rows) / batches,
                     uint32_t(y.channels),
                     uint32_t(a.channels),
                     batches,
                     uint32_t(f.examples(node.output)),
                     {},
                     {},
                     0};
    const T *left = f.activation(node.input[0]), *right = f.activation(node.input[1]);
    const T *left_dot = f.activation_dot(node.input[0]), *right_dot = f.activation_dot(node.input[1]);
    if (!f.tangent_tape) p.add(left, right);
    if (left_dot) p.add(left_dot, right);
    if (right_dot) p.add(left, right_dot);
    T* to = f.tangent_tape ? f.activation_dot(node.output) : f.activation_out(node.output);
    p.run(block, to, y, y.ld, GradientMode::kOverwrite);
  }
};

// Of the operand that is the argument: dA = dy B', dB = A' dy, which stands transposed if B does.
template <class T>
struct MatmulBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const int v = node.input[block.argument], partner = node.input[1 - block.argument];
    const Value &target = f.value(v), &other = f.value(partner), &y = f.value(node.output);
    const uint32_t batches = uint32_t(node.attribute[0]), rows = uint32_t(y.rows) / batches;
    const bool transposed = node.attribute[1] != 0, of_a = block.argument == 0;
    const bool dy_first = of_a || transposed;
    const MatrixSteps of_dy(y, y.ld_cotangent, of_a, batches), of_other(other, other.ld, of_a && !transposed, batches);
    MatrixTerms<T> p{dy_first ? of_dy : of_other,
                     dy_first ? of_other : of_dy,
                     uint32_t(target.rows) / batches,
                     uint32_t(target.channels),
                     of_a ? uint32_t(y.channels) : rows,
                     batches,
                     uint32_t(f.examples(node.output)),
                     {},
                     {},
                     0};
    const auto add = [&](const T* dy, const T* x) { dy_first ? p.add(dy, x) : p.add(x, dy); };
    add(f.tangent_tape ? f.cotangent_dot(node.output) : f.cotangent(node.output), f.activation(partner));
    if (const T* dot = f.activation_dot(partner)) add(f.cotangent(node.output), dot);
    T* to = f.tangent_tape ? f.cotangent_dot(v) : f.cotangent(v);
    p.run(block, to, target, target.ld_cotangent, node.input_mode[block.argument]);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
