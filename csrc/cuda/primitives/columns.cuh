// Rows of four neighbouring channels at a time, and sums over columns in two phases: chunks of rows, then the chunks.
#pragma once

#include "cuda/frame.cuh"

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

// a / b and a % b. Of 32 bits: see Block::for_each.
struct Divided {
  uint32_t quotient, rest;
  template <class I>
  MF_HD Divided(uint32_t a, I b) : quotient(a / uint32_t(b)), rest(a % uint32_t(b)) {}
};

// Calls body(first element, its column) for every quad of [rows][ld].
template <class Body>
static __device__ void for_quads(const Block& block, int64_t rows, int32_t ld, Body body) {
  const int32_t groups = ld / kDeviceLanes;
  block.for_each(rows * groups,
                 [&](uint32_t item) { body(item * kDeviceLanes, Divided(item, groups).rest * kDeviceLanes); });
}

// Calls body(chunk, its first element of a column, that column, rows) for every chunk of rows and every column. The
// argument of the phase is the number of rows of a chunk (columns.h).
template <class Body>
static __device__ void for_chunks(const Block& block, int64_t rows, int32_t ld, Body body) {
  const uint32_t size = uint32_t(block.argument), all = uint32_t(rows);
  block.for_each((all + size - 1) / size * ld, [&](uint32_t item) {
    const Divided at(item, ld);
    const uint32_t begin = at.quotient * size, end = begin + size < all ? begin + size : all;
    body(at.quotient, begin * uint32_t(ld) + at.rest, at.rest, end - begin);
  });
}

// First phase: out[chunk][SUMS][ld] = sums over the rows of a chunk of term(element, its column, sums).
template <int SUMS, class T, class Term>
static __device__ void sum_chunks(const Block& block, int64_t rows, int32_t ld, T* out, Term term) {
  for_chunks(block, rows, ld, [&](uint32_t chunk, uint32_t i, uint32_t c, uint32_t count) {
    T sum[SUMS] = {};
    for (uint32_t r = 0; r < count; ++r, i += uint32_t(ld)) term(i, c, sum);
    for (int k = 0; k < SUMS; ++k) out[(chunk * SUMS + k) * uint32_t(ld) + c] = sum[k];
  });
}

// Second phase: the sums of column c, over the chunks in their order.
template <int SUMS, class T>
static __device__ void add_chunks(const Block& block, int64_t rows, int32_t ld, uint32_t c, const T* chunks, T* sum) {
  const uint32_t size = uint32_t(block.argument), count = (uint32_t(rows) + size - 1) / size;
  for (int k = 0; k < SUMS; ++k) sum[k] = T(0);
  for (uint32_t chunk = 0; chunk < count; ++chunk)
    for (int k = 0; k < SUMS; ++k) sum[k] += chunks[(chunk * SUMS + k) * uint32_t(ld) + c];
}

}  // namespace METAFAST_ISA
}  // namespace metafast
