#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/processor.h"

namespace metafast {

#define METAFAST_DECLARE(ISA)     \
  namespace ISA {                 \
  template <class T>              \
  const Kernels<T>& table();      \
  template <>                     \
  const Kernels<float>& table();  \
  template <>                     \
  const Kernels<double>& table(); \
  }

#ifdef METAFAST_HAVE_NEON
METAFAST_DECLARE(neon)
#endif
#ifdef METAFAST_HAVE_AVX2
METAFAST_DECLARE(avx2)
#endif
#ifdef METAFAST_HAVE_AVX512
METAFAST_DECLARE(avx512)
#endif

namespace {

struct Isa {
  const char* name;
  bool supported;
  const Kernels<float>& (*f32)();
  const Kernels<double>& (*f64)();
};

// Newest first.
std::vector<Isa> isas() {
  std::vector<Isa> list;
#ifdef METAFAST_HAVE_AVX512
  list.push_back({"avx512", has_avx512(), avx512::table<float>, avx512::table<double>});
#endif
#ifdef METAFAST_HAVE_AVX2
  list.push_back({"avx2", has_avx2(), avx2::table<float>, avx2::table<double>});
#endif
#ifdef METAFAST_HAVE_NEON
  list.push_back({"neon", true, neon::table<float>, neon::table<double>});
#endif
#ifdef METAFAST_HAVE_BASELINE
  list.push_back({"baseline", true, baseline::table<float>, baseline::table<double>});
#endif
  return list;
}

Isa choose() {
  const char* forced = std::getenv("METAFAST_ISA");
  std::string known;
  for (const Isa& isa : isas()) {
    if (forced ? isa.name == std::string(forced) : isa.supported) {
      if (!isa.supported)
        throw std::invalid_argument(std::string("METAFAST_ISA=") + forced + ": this processor lacks it");
      return isa;
    }
    known += std::string(known.empty() ? "" : ", ") + isa.name;
  }
  if (forced) throw std::invalid_argument(std::string("METAFAST_ISA=") + forced + " is not one of " + known);
  throw std::runtime_error("metafast was compiled for " + known +
                           " alone, which this processor lacks: install it again, on this machine or without "
                           "METAFAST_ISAS");
}

const Isa& selected() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) names.push_back(isa.name);
  return names;
}

std::string selected_isa() { return selected().name; }

template <>
const Kernels<float>& kernels<float>() {
  return selected().f32();
}
template <>
const Kernels<double>& kernels<double>() {
  return selected().f64();
}

}  // namespace metafast
