// Random numbers by their number: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3;
// 2011), which torch uses on a GPU. Four words are a function of a counter of four words and a key; there is no state, so
// whoever asks for a number again gets it again.
#pragma once

#include "core/scalar.h"

namespace metafast {

// What random nodes draw by, besides their own number: the call's seed, the task's number in the call, the inner step, which
// for the query is the number of steps.
struct RandomKey {
  uint64_t seed;
  uint32_t task, step;
};

namespace METAFAST_ISA {

struct Philox {
  uint32_t word[4];

  MF_HD Philox(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint64_t key) {
    uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
    METAFAST_UNROLL for (int round = 0; round < 10; ++round) {
      const uint64_t x = uint64_t(0xD2511F53u) * a, y = uint64_t(0xCD9E8D57u) * c;
      a = uint32_t(y >> 32) ^ b ^ low, c = uint32_t(x >> 32) ^ d ^ high;
      b = uint32_t(y), d = uint32_t(x);
      low += 0x9E3779B9u, high += 0xBB67AE85u;
    }
    word[0] = a, word[1] = b, word[2] = c, word[3] = d;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
