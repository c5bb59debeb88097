// What a primitive is given to choose its form for a batch and to ask for memory.
#pragma once

#include <algorithm>

#include "program/primitives.h"
#include "program/program.h"

namespace metafast {

struct NodePlan {
  Program::Batch& batch;
  Step& s;
  int lanes;
  bool for_device, in_packs;
  bool row;  // the first parameter stands as one row

  const Value& in() const { return batch.value_list[size_t(s.input[0])]; }
  const Value& out() const { return batch.value_list[size_t(s.output)]; }
  int64_t examples() const { return batch.examples; }
  bool second_order() const { return batch.tangent_size != 0; }

  // Elements that last from the forward pass of an inner step to its tangent passes; that last for one pass; those of tangents.
  int64_t tape(int64_t n) const { return take(batch.tape_size, n); }
  int64_t transient(int64_t n) const { return take(batch.passing_size, n); }
  int64_t tangent_tape(int64_t n) const { return take(batch.tangent_size_total, n); }
  void scratch(int64_t n) const { batch.scratch_size = std::max(batch.scratch_size, n); }

  static int64_t take(int64_t& top, int64_t n) {
    const int64_t at = top;
    top += (n + 15) / 16 * 16;
    return at;
  }
};

}  // namespace metafast
