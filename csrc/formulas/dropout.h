// What dropout multiplies by: 1 / (1 - p) with probability 1 - p, else 0.
#pragma once

#include "core/philox.h"
#include "core/plan.h"

namespace metafast {
namespace METAFAST_ISA {

// The draws of one node in a pass over one task, by number. Four stand in a block.
template <class T>
struct DropoutDraws {
  RandomKey key;
  uint32_t number;
  uint64_t kept;
  T factor;

  MF_HD DropoutDraws(const RandomKey& k, const Node& node)
      : key(k), number(node.random.number), kept(node.random.kept), factor(T(1) / T(1 - node.attribute[0])) {}

  MF_HD Philox block(uint32_t i) const { return Philox(i, key.task, key.step, number, key.seed); }
  MF_HD T of_word(uint32_t word) const { return word < kept ? factor : T(0); }
  MF_HD T operator[](uint32_t i) const {
    const Philox drawn = block(i / 4);
    const uint32_t low = i & 1 ? drawn.word[1] : drawn.word[0], high = i & 1 ? drawn.word[3] : drawn.word[2];
    return of_word(i & 2 ? high : low);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
