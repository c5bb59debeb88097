// Functions of two elements, whose operands broadcast: one kernel per pass for all of them.
#pragma once

#include "cuda/primitives/shape_and_sum.cuh"
#include "formulas/pairs/list.h"

namespace metafast {
namespace METAFAST_ISA {

template <class Body>
static __device__ void with_pair(const Node& node, Body body) {
  switch (node.op) {
#define METAFAST_CASE(NAME, ...) \
  case Op::k##NAME: body(NAME()); break;
    METAFAST_PAIRS(METAFAST_CASE)
#undef METAFAST_CASE
    default: break;
  }
}

// Where the element of an operand stands that element (n, r, c) of the output is made of.
struct Broadcast {
  uint32_t example, row, channel;
  MF_HD explicit Broadcast(const Value& v, int32_t ld)
      : example(v.shared ? 0u : uint32_t(v.rows * ld)), row(v.rows > 1 ? uint32_t(ld) : 0u), channel(v.channels > 1) {}
  MF_HD uint32_t operator()(uint32_t n, uint32_t r, uint32_t c) const { return n * example + r * row + c * channel; }
};

// An operand in this pass. A tangent that is known to be zero is none.
template <class T>
struct PairOperand {
  const T *x, *dot;
  Broadcast at;
  __device__ PairOperand(const Frame<T>& f, int v)
      : x(f.activation(v)), dot(f.activation_dot(v)), at(f.value(v), f.value(v).ld) {}
  __device__ Dual<T> dual(uint32_t i) const { return Dual<T>(x[i], dot ? dot[i] : T(0)); }
};

template <class T>
struct PairForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value& out = f.value(node.output);
    const PairOperand<T> a(f, node.input[0]), b(f, node.input[1]);
    T* y = plane_out(f, node.output);
    with_pair(node, [&](auto function) {
      using F = decltype(function);
      block.for_each(f.rows(node.output) * out.ld, [&](uint32_t o) {
        const Divided place(o, out.ld), row(place.quotient, out.rows);
        if (place.rest >= uint32_t(out.channels)) {
          y[o] = T(0);
          return;
        }
        const uint32_t i = a.at(row.quotient, row.rest, place.rest), j = b.at(row.quotient, row.rest, place.rest);
        const T p = a.x[i], q = b.x[j];
        y[o] = f.tangent_tape ? F::left(p, q) * a.dual(i).d + F::right(p, q) * b.dual(j).d : F::value(p, q);
      });
    });
  }
};

// Of the operand that is the argument: every element sums over what it was broadcast to.
template <class T>
struct PairBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const int v = node.input[block.argument];
    const Value &in = f.value(v), &out = f.value(node.output);
    const PairOperand<T> a(f, node.input[0]), b(f, node.input[1]);
    const T *dy = f.cotangent(node.output), *dy_dot = f.tangent_tape ? f.cotangent_dot(node.output) : nullptr;
    T* dx = cotangent_plane(f, v);
    const Broadcast to(out, out.ld_cotangent);
    const bool left = block.argument == 0;
    with_pair(node, [&](auto function) {
      using F = decltype(function);
      const auto term = [&](uint32_t n, uint32_t r, uint32_t c) {
        const uint32_t i = a.at(n, r, c), j = b.at(n, r, c), k = to(n, r, c);
        if (!dy_dot) return (left ? F::left(a.x[i], b.x[j]) : F::right(a.x[i], b.x[j])) * dy[k];
        const Dual<T> d = left ? F::left(a.dual(i), b.dual(j)) : F::right(a.dual(i), b.dual(j));
        return d.v * dy_dot[k] + (has(node.op, kLinear) ? T(0) : d.d * dy[k]);
      };
      block.for_each(f.rows(v) * in.ld_cotangent, [&](uint32_t o) {
        const Divided place(o, in.ld_cotangent), row(place.quotient, in.rows);
        T sum = T(0);
        if (place.rest < uint32_t(in.channels)) {
          const uint32_t n = row.quotient, r = row.rest, c = place.rest;
          const uint32_t last_n = in.shared ? uint32_t(f.examples(node.output)) : n + 1;
          const uint32_t last_r = in.rows > 1 ? r + 1 : uint32_t(out.rows),
                         last_c = in.channels > 1 ? c + 1 : uint32_t(out.channels);
          for (uint32_t i = n; i < last_n; ++i)
            for (uint32_t j = r; j < last_r; ++j)
              for (uint32_t k = c; k < last_c; ++k) sum += term(i, j, k);
        }
        put(dx + o, sum, node.input_mode[block.argument]);
      });
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
