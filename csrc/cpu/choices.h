// How the CPU does a call, where there is a choice that changes no result but its rounding: by counts of products and bytes.
#pragma once

#include "engine/call.h"

namespace metafast {

// Whether tasks could run in packs (cpu/kernels/pack.h) of as many lanes: where the network is of the sort, what a pack works on is
// not too much for the caches, and cpu/first_layer.h, which packs cannot use, would not save more. The sums of such a network are
// done in the order of packs however its tasks run.
bool could_run_in_packs(const Call& call, const Program& program, int lanes, size_t element_bytes);

// Of packs: how many tasks a whole or a small one takes, and whether a small one takes less time than a whole one.
struct PackSizes {
  int lanes, group;
  bool (*small_pay)();
};

// How the tasks of a call run: those before `packed` in runs of `width`, the others, which together take as long as `rest` such
// runs, one by one.
struct Division {
  int width;
  int64_t packed;
  double rest;
};
Division divide(const Call& call, const Program& program, const PackSizes& sizes, size_t element_bytes);

// Runs that are no more than this for each thread may be divided unevenly, or migrate.
constexpr int64_t kFewRuns = 8;

// Whether cpu/first_layer.h takes over the first layer: where it applies and costs fewer operations.
bool first_layer_by_gram(const Call& call, const Program& program);

}  // namespace metafast
