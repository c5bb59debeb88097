// How sums over columns are cut (columns.cuh).
#pragma once

#include <math.h>

#include "cuda/emitter.h"

namespace metafast {

// A chunk of so many rows for each thread: as long as there are chunks, so that both phases are short; and no longer
// than float32 sums should be.
struct ColumnChunks {
  int64_t rows, ld;
  int32_t size;
  ColumnChunks(int64_t rows_, int64_t ld_) : rows(rows_), ld(ld_) {
    size = int32_t(std::clamp<int64_t>(int64_t(sqrt(double(rows_))), 8, 256));
  }
  int64_t count() const { return (rows + size - 1) / size; }
  int64_t sum_tiles() const { return std::clamp<int64_t>((count() * ld + kThreads - 1) / kThreads, 1, 256); }
  int64_t fold_tiles() const { return (ld + kThreads - 1) / kThreads; }
  int64_t scratch(int64_t sums) const { return count() * sums * ld; }
};

}  // namespace metafast
