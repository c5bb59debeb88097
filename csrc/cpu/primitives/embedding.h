// Rows of a table, by their numbers, which stand in the input as numbers of its type. Whoever calls has looked that there
// are such rows.
#pragma once

#include <string.h>

#include "cpu/frame.h"

namespace metafast {
namespace METAFAST_ISA {

// Linear in the table, but for the row of the padding, which is as constant as a table that is none: the identity. The
// numbers have no gradient.
template <class T>
struct Embedding {
  static void forward(const Frame<T>& f, const Node& node) {
    T* y = f.activation_out(node.output);
    gather(f, node, f.parameter(node.parameter[0]), -1, y);
    if (node.parameter[0] < 0)
      each(f, node, 0, f.examples(), [&](int64_t one, int64_t to) { y[to * f.value(node.output).ld + one] = T(1); });
  }
  static void backward(const Frame<T>& f, const Node& node) {
    if (f.makes_gradient(node, 0)) scatter(f, node, f.cotangent(node.output), f.parameter_gradient(node.parameter[0]));
    if (wanted(node.input_mode[0])) no_gradient(f, node, f.cotangent(node.input[0]));
  }
  static void tangent_forward(const Frame<T>& f, const Node& node) {
    gather(f, node, f.parameter_dot(node.parameter[0]), padding(node), f.activation_dot(node.output));
  }
  static void tangent_backward(const Frame<T>& f, const Node& node) {
    if (wanted(node.parameter_mode[0]))
      scatter(f, node, f.cotangent_dot(node.output), f.parameter_gradient_dot(node.parameter[0]));
    if (wanted(node.input_mode[0])) no_gradient(f, node, f.cotangent_dot(node.input[0]));
  }

 private:
  // Calls body(row of the table, row of the output) for examples [begin, end), in their order.
  template <class Body>
  static void each(const Frame<T>& f, const Node& node, int64_t begin, int64_t end, Body body) {
    const Value& in = f.value(node.input[0]);
    const T* x = f.activation(node.input[0]);
    for (int64_t r = begin * in.rows, to = r * in.channels; r < end * in.rows; ++r)
      for (int64_t c = 0; c < in.channels; ++c, ++to) body(int64_t(x[r * in.ld + c]), to);
  }

  static int64_t padding(const Node& node) { return int64_t(node.attribute[0]); }

  // The row `zero` is zero, and so are all of a table that is null.
  static void gather(const Frame<T>& f, const Node& node, const T* w, int64_t zero, T* y) {
    const Value& out = f.value(node.output);
    const int64_t ld = out.ld;
    f.share(f.examples(), out.rows * ld, [&](int64_t begin, int64_t end, T*) {
      each(f, node, begin, end, [&](int64_t from, int64_t to) {
        if (w && from != zero)
          memcpy(y + to * ld, w + from * ld, size_t(ld) * sizeof(T));
        else
          memset(y + to * ld, 0, size_t(ld) * sizeof(T));
      });
    });
  }

  // Threads share columns: each sums its own over all examples, in their order.
  static void scatter(const Frame<T>& f, const Node& node, const T* dy, T* dw) {
    const ParameterPlan& table = f.parameter_plan(node.parameter[0]);
    const Value& out = f.value(node.output);
    const bool keep = node.parameter_mode[0] == GradientMode::kAccumulate;
    const int64_t ld = table.ld, skipped = padding(node);
    f.share(ld / kLanes<T>, f.rows(node.output) * kLanes<T>, [&](int64_t begin, int64_t end, T*) {
      const int64_t first = begin * kLanes<T>, count = (end - begin) * kLanes<T>;
      if (!keep)
        for (int64_t r = 0; r < table.inputs; ++r) memset(dw + r * ld + first, 0, size_t(count) * sizeof(T));
      each(f, node, 0, f.examples(), [&](int64_t to, int64_t from) {
        if (to != skipped) add(dy + from * out.ld_cotangent + first, dw + to * ld + first, count);
      });
    });
  }
  static void add(const T* __restrict from, T* __restrict to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  }

  static void no_gradient(const Frame<T>& f, const Node& node, T* dx) {
    const int v = node.input[0];
    if (node.input_mode[0] == GradientMode::kOverwrite)
      memset(dx, 0, size_t(f.rows(v) * f.value(v).ld_cotangent) * sizeof(T));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
