// Rows of four neighbouring channels at a time, and sums over columns in two phases: chunks of rows, then the chunks.
#pragma once

#include "../frame.cuh"

namespace metafast {
namespace METAFAST_ISA {

// Four neighbouring elements, moved 16 bytes at a time. The address is a multiple of 16 bytes.
template <class T>
struct alignas(16) Quad {
  T v[kDeviceLanes];
};
template <class T>
MF_HD Quad<T> load4(const T* from) {
  return *reinterpret_cast<const Quad<T>*>(from);
}
template <class T>
MF_HD void store4(T* to, const Quad<T>& quad) {
  *reinterpret_cast<Quad<T>*>(to) = quad;
}

// a / b and a % b, by the short division where it will do: the long one costs more than the memory it is for.
struct Divided {
  int64_t quotient, rest;
  MF_HD Divided(int64_t a, int64_t b) {
    if (a <= int64_t(0xFFFFFFFF) && b <= int64_t(0xFFFFFFFF)) {
      const uint32_t q = uint32_t(a) / uint32_t(b);
      quotient = int64_t(q), rest = int64_t(uint32_t(a) - q * uint32_t(b));
    } else {
      quotient = a / b, rest = a - quotient * b;
    }
  }
};

// Calls body(first element, its column) for every quad of [rows][ld].
template <class Body>
static __device__ void for_quads(const Block& block, int64_t rows, int64_t ld, Body body) {
  const int64_t groups = ld / kDeviceLanes;
  block.for_each(rows * groups,
                 [&](int64_t item) { body(item * kDeviceLanes, Divided(item, groups).rest * kDeviceLanes); });
}

// First phase: out[chunk][SUMS][ld] = sums over the rows of a chunk of term(element, its column, sums). The argument of
// the phase is the number of rows of a chunk (columns.h).
template <int SUMS, class T, class Term>
static __device__ void sum_chunks(const Block& block, int64_t rows, int64_t ld, T* out, Term term) {
  const int64_t size = block.argument, chunks = (rows + size - 1) / size;
  block.for_each(chunks * ld, [&](int64_t item) {
    const Divided at(item, ld);
    const int64_t c = at.rest, begin = at.quotient * size, end = begin + size < rows ? begin + size : rows;
    T sum[SUMS] = {};
    for (int64_t r = begin; r < end; ++r) term(r * ld + c, c, sum);
    for (int i = 0; i < SUMS; ++i) out[(at.quotient * SUMS + i) * ld + c] = sum[i];
  });
}

// Second phase: the sums of column c, over the chunks in their order.
template <int SUMS, class T>
static __device__ void add_chunks(const Block& block, int64_t rows, int64_t ld, int64_t c, const T* chunks, T* sum) {
  const int64_t size = block.argument, count = (rows + size - 1) / size;
  for (int i = 0; i < SUMS; ++i) sum[i] = T(0);
  for (int64_t k = 0; k < count; ++k)
    for (int i = 0; i < SUMS; ++i) sum[i] += chunks[(k * SUMS + i) * ld + c];
}

}  // namespace METAFAST_ISA
}  // namespace metafast
