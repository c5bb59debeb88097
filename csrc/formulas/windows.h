// What pooling and flattening mean, for one element: shared by the CPU's loops and the device's threads.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

// Calls body(position in the image) for each element of a window, in torch's order.
template <class Body>
MF_HD void for_positions(const PoolWindow& window, const Node& node, int64_t width, Body body) {
  for (int64_t h = window.row_begin; h < window.row_end; h += node.dilation[0])
    for (int64_t w = window.column_begin; w < window.column_end; w += node.dilation[1]) body(h * width + w);
}

// The first maximum of a window wins, and NaN is the greatest of all, as in torch. Of numbers, or of vectors of them.
template <class T>
MF_HD auto beats(T challenger, T best) {
  return ((challenger <= best) == 0) & (best == best);
}

// Where channel c of position r stands in the flattened row: torch's order, channels outermost.
MF_HD int64_t flattened(const Value& in, int64_t r, int64_t c) {
  return in.height > 0 ? c * in.rows + r : r * in.channels + c;
}

}  // namespace METAFAST_ISA
}  // namespace metafast
