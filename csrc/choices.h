// How the CPU does a call, where there is a choice that changes no result but its rounding: by counts of products and bytes.
#pragma once

#include "call.h"

namespace metafast {

// Whether tasks could run in packs (cpu/pack.h) of as many lanes: where the network is of the sort, what a pack works on is
// not too much for the caches, and first_layer.h, which packs cannot use, would not save more. The sums of such a network are
// done in the order of packs however its tasks run.
bool could_run_in_packs(const Call& call, const Program& program, int lanes, size_t element_bytes);

// Whether they do, if they could: where there are tasks enough for most lanes of as many packs as there are threads.
bool run_in_packs(const Call& call, const Program& program, int lanes, size_t element_bytes);

// Whether first_layer.h takes over the first layer: where it applies and costs fewer operations.
bool first_layer_by_gram(const Call& call, const Program& program);

bool wants_rate_gradient(const Call& call);

}  // namespace metafast
