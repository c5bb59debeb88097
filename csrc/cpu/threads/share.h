// Long loops of a task, in parts that idle threads take (work_stealing.h).
#pragma once

#include "cpu/kernels/zeros.h"
#include "engine/job.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Sharing {
  Helpers helpers;
  int64_t thread;  // whose loops they are
  T* scratch;      // of thread 0; every thread has its own
  int64_t stride;  // from thread to thread

  T* scratch_of(int64_t member) const { return scratch + member * stride; }

  // How many threads would take part.
  int64_t members() const { return helpers.owner ? helpers.likely(helpers.owner) + 1 : 1; }

  // Calls body(begin, end, scratch) for parts of 0 .. n, side by side where threads are idle and parts are worth it: `cost` is
  // about how many multiply-adds one of n takes. What a part computes must not depend on where it begins and ends.
  template <class Body>
  void operator()(int64_t n, int64_t cost, const Body& body) const {
    const int64_t threads = members();
    const int64_t most = threads > 1 ? n / (helpers.worth / (cost > 0 ? cost : 1) + 1) : 1;
    const Loop<Body> loop{*this, body, n, threads < most ? threads : most > 1 ? most : 1};
    if (loop.parts > 1)
      helpers.share(helpers.owner, thread, loop.parts, Loop<Body>::run, &loop);
    else
      Loop<Body>::run(&loop, 0, thread);
  }

 private:
  template <class Body>
  struct Loop {
    const Sharing& sharing;
    const Body& body;
    const int64_t n, parts;

    METAFAST_OUTLINED static void run(const void* loop, int64_t part, int64_t thread) {
      const Loop& l = *static_cast<const Loop*>(loop);
      T* const scratch = l.sharing.scratch_of(thread);
      if (l.parts == 1) return l.body(0, l.n, scratch);
      l.body(part * l.n / l.parts, (part + 1) * l.n / l.parts, scratch);
    }
  };
};

// multiply_skipping_zeros() in parts: rows of C by whole tiles, or, where those are few, columns.
template <class T>
static void multiply(const Sharing<T>& share, const Gather<T>& a, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t m,
                     int64_t n, int64_t k, Start start, const T* bias = nullptr) {
  constexpr int64_t L = kLanes<T>;
  const int64_t tile_rows = a.has_zeros && L > 8 ? L : 8;  // zeros are found by whole vectors
  if (share.members() == 1) return multiply_skipping_zeros<T>(a, b, ldb, c, ldc, m, n, k, start, bias);
  if (m >= 2 * tile_rows) {
    const int64_t tiles = (m + tile_rows - 1) / tile_rows;
    share(tiles, tile_rows * n * k, [&](int64_t begin, int64_t end, T*) {
      const int64_t from = begin * tile_rows, to = end * tile_rows < m ? end * tile_rows : m;
      Gather<T> rows = a;
      if (a.row)
        rows.row += from;
      else
        rows.data += from * a.row_stride;
      multiply_skipping_zeros<T>(rows, b, ldb, c + from * ldc, ldc, to - from, n, k, start, bias);
    });
  } else {
    share(n / L, m * k * L, [&](int64_t begin, int64_t end, T*) {
      multiply_skipping_zeros<T>(a, b + begin * L, ldb, c + begin * L, ldc, m, (end - begin) * L, k, start,
                                 bias ? bias + begin * L : nullptr);
    });
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
