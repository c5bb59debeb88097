// Prints what METAFAST_ISAS=native stands for: the newest instruction set of the processor that compiles.
#include <cstdio>

#include "../csrc/cpu/processor.h"

int main() {
  using namespace metafast;
  std::puts(has_avx512() ? "avx512" : has_avx2() ? "avx2" : "baseline");
}
