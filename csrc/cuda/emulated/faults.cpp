// Kernels with planted faults, and one without: what csrc/cuda/shim.h must catch, and must not. tests/test_shim.py.
#include "cuda/emulated/faults.h"

#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.h"

namespace metafast {
namespace {

enum class Fault { kNone, kMissingBarrier, kDivergence, kPastShared, kPastGlobal, kUnwritten, kTilesDepend, kWarp };

// Every thread leaves a number and reads that of its mirror image; blocks write apart from each other.
__global__ void mirror(double* out, Fault fault) {
  METAFAST_SHARED_MEMORY(memory);
  double* const shared = static_cast<double*>(memory);
  const unsigned t = threadIdx.x, n = blockDim.x, begin = blockIdx.x * n;
  if (fault != Fault::kUnwritten || t != 5) shared[t] = double(begin + t + 1);
  if (fault == Fault::kPastShared && t == 7) shared[n] = 1;
  if (fault != Fault::kMissingBarrier && (fault != Fault::kDivergence || t != 3)) __syncthreads();
  double value = shared[n - 1 - t];
  if (fault == Fault::kTilesDepend) value += out[(begin + n + t) % (gridDim.x * n)];  // what another block may write
  if (fault == Fault::kWarp)                                                          // the sum over a warp
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  out[begin + t] = value;
  if (fault == Fault::kPastGlobal && begin + t + 1 == gridDim.x * n) out[begin + n] = 1;
}

std::vector<double> planted(const std::string& name, int blocks) {
  const char* names[] = {"none",        "missing barrier", "divergence",   "past shared",
                         "past global", "unwritten",       "tiles depend", "warp"};
  int fault = -1;
  for (int i = 0; i < 8; ++i)
    if (name == names[i]) fault = i;
  if (fault < 0) throw std::invalid_argument("unknown fault " + name);
  constexpr int kBlock = 64;
  const size_t count = size_t(blocks) * kBlock;
  std::unique_ptr<double[]> out(new double[count]());
  METAFAST_LAUNCH((mirror), dim3(unsigned(blocks)), kBlock, kBlock * sizeof(double), nullptr)(out.get(), Fault(fault));
  return {out.get(), out.get() + count};
}

const char* sanitizer() {
#if defined(__SANITIZE_ADDRESS__)
  return "address";
#elif defined(__SANITIZE_THREAD__)
  return "thread";
#else
  return "";
#endif
}

}  // namespace

void bind_faults(pybind11::module_& m) {
  m.def("planted", &planted, pybind11::arg("fault"), pybind11::arg("blocks"));
  m.def("sanitizer", &sanitizer);
}

}  // namespace metafast
