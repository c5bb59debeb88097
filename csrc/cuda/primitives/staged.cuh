// Large products, a tile of kTileEdge x kTileEdge outputs by a block, with the operands staged in shared memory.
//
//   C[m, n] = bias[n] + sum over terms, over k of [begin, end), of left(m, k) right(k, n)
//
// Each thread makes 4x4 outputs in registers. Slices of kSlice deep stand in shared memory twice: while one is multiplied
// the next is on its way. Sums are folded every kProductDepth and in the order of product.cuh and conv2d.cuh, so
// that it makes no difference to the bits which of them made a product. Operands are anything that can be indexed:
//
//   Outer outer(uint32_t m)            what m alone determines (n, on the right)
//   Inner inner(uint32_t k)            what k alone determines
//   T load(int term, Outer, Inner)
//   bool kInnerIsNear                  whether neighbouring k are neighbours in memory, rather than neighbouring m
//
// or, on the right, rows of whole quads: Quad<T> quad(int term, uint32_t k, uint32_t n).
#pragma once

#include "cuda/primitives/columns.cuh"
#include "cuda/primitives/weight_gradient.cuh"

namespace metafast {
namespace METAFAST_ISA {

constexpr int kTileEdge = 64, kSlice = int(kProductSlice);
constexpr int kWorkers = 256;  // who make 4x4 outputs each: threads, if there are as many

// How a worker makes its outputs: quad i of them is row(i) of the tile from column(i) on. (The other: staged_tf32.cuh.)
template <class T>
struct PlainForm {
  static constexpr int kPitch = kTileEdge + 4;  // spreads columns over banks
  int32_t first_row, first_column;

  __device__ explicit PlainForm(int worker) : first_row(worker / 16 * 4), first_column(worker % 16 * 4) {}
  __device__ int32_t row(int i) const { return first_row + i; }
  __device__ int32_t column(int) const { return first_column; }
  static __device__ T stored(T x) { return x; }
  __device__ void multiply(const T* a, const T* b, T (&part)[4][4]) const {
    for (int k = 0; k < kSlice; ++k) {
      const Quad<T> left = load4(a + k * kPitch + first_row), right = load4(b + k * kPitch + first_column);
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) part[i][j] += left.v[i] * right.v[j];
    }
  }
};

// One operand's part of what a worker brings: four elements of a slice.
template <class T, class Form, class Operand>
struct Courier {
  const Operand& operand;
  int32_t k, first, step;  // within the slice, and within the tile: first, first + step, ...
  typename Operand::Outer outer[4];

  __device__ Courier(const Operand& o, int worker, uint32_t origin) : operand(o) {
    k = Operand::kInnerIsNear ? worker % kSlice : worker / 16;
    first = Operand::kInnerIsNear ? worker / kSlice : worker % 16;
    step = 16;
    for (int q = 0; q < 4; ++q) outer[q] = operand.outer(origin + uint32_t(first + q * step));
  }
  __device__ void fetch(int term, uint32_t slice, uint32_t end, T (&out)[4]) const {
    const uint32_t at = slice + uint32_t(k);
    if (at >= end) {
      for (int q = 0; q < 4; ++q) out[q] = T(0);
      return;
    }
    const typename Operand::Inner inner = operand.inner(at);
    for (int q = 0; q < 4; ++q) out[q] = operand.load(term, outer[q], inner);
  }
  __device__ void put(const T (&in)[4], T* slice) const {
    for (int q = 0; q < 4; ++q) slice[k * Form::kPitch + first + q * step] = Form::stored(in[q]);
  }
};

// Rows of [k][ld], read by quads.
template <class T>
struct QuadRows {
  const T *data0, *data1;
  uint32_t ld;
  __device__ Quad<T> quad(int term, uint32_t k, uint32_t n) const {
    return n < ld ? load4((term == 0 ? data0 : data1) + k * ld + n) : Quad<T>{};
  }
};

template <class T, class Form>
struct Courier<T, Form, QuadRows<T>> {
  const QuadRows<T>& operand;
  int32_t k, first;
  uint32_t n;

  __device__ Courier(const QuadRows<T>& o, int worker, uint32_t origin)
      : operand(o), k(worker / 16), first(worker % 16 * 4), n(origin + uint32_t(first)) {}
  __device__ void fetch(int term, uint32_t slice, uint32_t end, T (&out)[4]) const {
    const uint32_t at = slice + uint32_t(k);
    const Quad<T> quad = at < end ? operand.quad(term, at, n) : Quad<T>{};
    for (int q = 0; q < 4; ++q) out[q] = quad.v[q];
  }
  __device__ void put(const T (&in)[4], T* slice) const {
    Quad<T> quad;
    for (int q = 0; q < 4; ++q) quad.v[q] = Form::stored(in[q]);
    store4(slice + k * Form::kPitch + first, quad);
  }
};

// On the device there are as many threads as workers, and the loop over them is none. Fewer threads work for several each.
__device__ inline constexpr int staged_threads(const Block& block) {
#if defined(__CUDACC__)
  return kThreads;
#else
  return block.threads;
#endif
}

template <class T, class Form, class Put>
static __device__ void put_tile(const Form& form, const T (&total)[4][4], uint32_t m0, uint32_t n0, const Put& put) {
  for (int i = 0; i < 4; ++i) {
    Quad<T> out;
    for (int j = 0; j < 4; ++j) out.v[j] = total[i][j];
    put(m0 + uint32_t(form.row(i)), n0 + uint32_t(form.column(i)), out);
  }
}

// Calls put(m, n, outputs n to n + 3 of row m) for the tile whose first output is (m0, n0).
template <class T, class Form, class Left, class Right, class Put>
static __device__ void staged_tile(const Block& block, uint32_t m0, uint32_t n0, uint32_t begin, uint32_t end,
                                   int terms, const Left& left, const Right& right, const T* bias, uint32_t columns,
                                   Put put) {
  constexpr int kSize = kSlice * Form::kPitch;
  T* const memory = block.shared<T>();  // two slices of the left operand, then two of the right
  const int threads = staged_threads(block);
  METAFAST_ROLLED for (int base = 0; base < kWorkers; base += threads) {
    const int worker = base + block.thread;
    const Form form(worker);
    const Courier<T, Form, Left> a(left, block.thread, m0);
    const Courier<T, Form, Right> b(right, block.thread, n0);
    T total[4][4];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j)
        total[i][j] = bias && n0 + uint32_t(form.column(i)) < columns ? bias[n0 + uint32_t(form.column(i) + j)] : T(0);
    METAFAST_ROLLED for (int term = 0; term < terms; ++term) {
      T next_a[4], next_b[4], part[4][4] = {};
      int folded = 0;
      // What the workers bring that no thread is: straight into shared memory.
      const auto rest = [&](uint32_t slice, int buffer) {
        METAFAST_ROLLED for (int other = block.thread + threads; other < kWorkers; other += threads) {
          T element[4];
          const Courier<T, Form, Left> more_a(left, other, m0);
          more_a.fetch(term, slice, end, element);
          more_a.put(element, memory + buffer * kSize);
          const Courier<T, Form, Right> more_b(right, other, n0);
          more_b.fetch(term, slice, end, element);
          more_b.put(element, memory + (2 + buffer) * kSize);
        }
      };
      int buffer = 0;
      a.fetch(term, begin, end, next_a);
      b.fetch(term, begin, end, next_b);
      a.put(next_a, memory);
      b.put(next_b, memory + 2 * kSize);
      rest(begin, 0);
      block.sync();
      METAFAST_ROLLED for (uint32_t slice = begin; slice < end; slice += kSlice, buffer ^= 1) {
        const uint32_t next = slice + kSlice;
        if (next < end) {
          a.fetch(term, next, end, next_a);
          b.fetch(term, next, end, next_b);
        }
        if (worker < kWorkers) form.multiply(memory + buffer * kSize, memory + (2 + buffer) * kSize, part);
        if (++folded == int(kProductDepth) / kSlice || next >= end) {
          for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) total[i][j] += part[i][j], part[i][j] = T(0);
          folded = 0;
        }
        if (next < end) {
          a.put(next_a, memory + (buffer ^ 1) * kSize);
          b.put(next_b, memory + (2 + (buffer ^ 1)) * kSize);
          rest(next, buffer ^ 1);
        }
        block.sync();
      }
    }
    if (worker < kWorkers) put_tile(form, total, m0, n0, put);
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
