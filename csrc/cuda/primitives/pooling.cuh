// Average and max pooling over the planner's windows. Where the CPU scatters to the input, a thread here gathers: it
// makes one element of the input and looks at the windows that hold it, in their order.
#pragma once

#include "cuda/primitives/shape_and_sum.cuh"
#include "program/primitives.h"

namespace metafast {
namespace METAFAST_ISA {

// No window before this one along an axis holds `position`.
MF_HD int32_t first_window(const Node& node, int axis, int32_t position, int32_t size, int32_t windows) {
  if (node.op == Op::kAdaptiveAvgPool2d) return int32_t(uint32_t(position) * uint32_t(windows) / uint32_t(size));
  const int32_t least = position + node.pad[axis] - node.dilation[axis] * (node.kernel[axis] - 1);
  return least <= 0 ? 0 : (least + node.stride[axis] - 1) / node.stride[axis];
}

MF_HD bool contains(int32_t begin, int32_t end, int32_t dilation, int32_t position) {
  return begin <= position && position < end && (dilation == 1 || (position - begin) % dilation == 0);
}

// Calls body(position in the output) for each window that holds `position` of the input.
template <class Body>
MF_HD void for_windows_of(const Node& node, const Value& in, const Value& out, uint32_t position, Body body) {
  const Divided pixel(position, in.width);
  const int32_t h = int32_t(pixel.quotient), w = int32_t(pixel.rest);
  for (int32_t i = first_window(node, 0, h, in.height, out.height); i < out.height; ++i) {
    const PoolWindow& row = node.windows[i * out.width];
    if (row.row_begin > h) break;
    if (!contains(row.row_begin, row.row_end, node.dilation[0], h)) continue;
    for (int32_t j = first_window(node, 1, w, in.width, out.width); j < out.width; ++j) {
      const PoolWindow& column = node.windows[j];
      if (column.column_begin > w) break;
      if (contains(column.column_begin, column.column_end, node.dilation[1], w)) body(uint32_t(i * out.width + j));
    }
  }
}

// Element i of the input or the output of a pooling.
struct Pixel {
  uint32_t image, position, channel;
  MF_HD Pixel(const Value& v, uint32_t i) {
    const Divided row(i, v.ld), at(row.quotient, v.rows);
    image = at.quotient, position = at.rest, channel = row.rest;
  }
  template <class I>
  MF_HD uint32_t place(const Value& v, I where) const {
    return (image * uint32_t(v.rows) + uint32_t(where)) * uint32_t(v.ld) + channel;
  }
};

template <class T>
struct AvgPoolForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const T* x = plane_in(f, node.input[0]);
    T* y = plane_out(f, node.output);
    block.for_each(f.rows(node.output) * out.ld, [&](uint32_t o) {
      const Pixel at(out, o);
      const PoolWindow& window = node.windows[at.position];
      T sum = T(0);
      for_positions(window, node, in.width, [&](int64_t position) { sum += x[at.place(in, position)]; });
      y[o] = sum / T(window.divisor);
    });
  }
};

template <class T>
struct AvgPoolBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const T* dy = cotangent_plane(f, node.output);
    T* dx = cotangent_plane(f, node.input[0]);
    block.for_each(f.rows(node.input[0]) * in.ld, [&](uint32_t i) {
      const Pixel at(in, i);
      T sum = T(0);
      for_windows_of(node, in, out, at.position,
                     [&](uint32_t o) { sum += dy[at.place(out, o)] / T(node.windows[o].divisor); });
      put(dx + i, sum, node.input_mode[0]);
    });
  }
};

// Saves the position of each maximum, as an integer in the tape.
template <class T>
struct MaxPoolForward : PhaseDefaults {
  using Int = typename Bits<T>::Int;
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const T* x = f.activation(node.input[0]);
    T* y = f.activation_out(node.output);
    Int* winners = reinterpret_cast<Int*>(f.tape + node.saved);
    block.for_each(f.rows(node.output) * out.ld, [&](uint32_t o) {
      const Pixel at(out, o);
      T best = T(0);
      int64_t winner = -1;
      for_positions(node.windows[at.position], node, in.width, [&](int64_t position) {
        const T here = x[at.place(in, position)];
        if (winner < 0 || beats(here, best)) best = here, winner = position;
      });
      y[o] = best;
      winners[o] = Int(winner);
    });
  }
};

template <class T>
struct MaxPoolTangentForward : PhaseDefaults {
  using Int = typename Bits<T>::Int;
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const T* x_dot = f.activation_dot(node.input[0]);
    T* y_dot = f.activation_dot(node.output);
    const Int* winners = reinterpret_cast<const Int*>(f.tape + node.saved);
    block.for_each(f.rows(node.output) * out.ld,
                   [&](uint32_t o) { y_dot[o] = x_dot[Pixel(out, o).place(in, winners[o])]; });
  }
};

template <class T>
struct MaxPoolBackward : PhaseDefaults {
  using Int = typename Bits<T>::Int;
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const T* dy = cotangent_plane(f, node.output);
    T* dx = cotangent_plane(f, node.input[0]);
    const Int* winners = reinterpret_cast<const Int*>(f.tape + node.saved);
    block.for_each(f.rows(node.input[0]) * in.ld, [&](uint32_t i) {
      const Pixel at(in, i);
      T sum = T(0);
      for_windows_of(node, in, out, at.position, [&](uint32_t o) {
        const uint32_t to = at.place(out, o);
        if (winners[to] == Int(at.position)) sum += dy[to];
      });
      put(dx + i, sum, node.input_mode[0]);
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
