// Which products are large enough for staged.cuh, and how many tiles they make.
#pragma once

#include "cuda/primitives/columns.h"

namespace metafast {

// A product of [rows][inner] and [inner][columns], as one task sees it.
struct StagedProduct {
  static constexpr int64_t kEdge = 64, kSlice = 16;
  int64_t rows, columns, inner;

  // Half a tile filled at least, and enough slices to hide the first one's way.
  bool is_large() const {
    return rows >= kEdge && 2 * columns > kEdge / 2 && inner >= 2 * kSlice && rows * columns * inner >= kLeast;
  }
  // The persistent kernel has no room, and makes the same bits without.
  bool is_staged(const Emitter& e) const { return is_large() && !e.persistent; }
  int64_t tiles() const { return (rows + kEdge - 1) / kEdge * ((columns + kEdge - 1) / kEdge); }
  // A long sum over few outputs is cut into parts, so that it is work for more than a few blocks.
  int64_t parts() const { return std::clamp<int64_t>(std::min(kBlocks / tiles(), inner / kPart), 1, 32); }

 private:
  static constexpr int64_t kLeast = 1 << 17, kBlocks = 128, kPart = 256;
};

}  // namespace metafast
