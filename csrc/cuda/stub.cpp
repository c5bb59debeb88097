// In place of csrc/cuda where no nvcc was found: the same functions, which say so.
#include <stdexcept>
#include <string>

#include "session.h"

namespace metafast {

namespace {
const char kNone[] =
    "this build of metafast has no CUDA code: it was compiled where there was no nvcc, or with METAFAST_CUDA=0";
}

template <class T>
DeviceNeeds run_on_device(const Program&, const Call&, const DeviceCall&, Address, int64_t) {
  throw std::runtime_error(kNone);
}
template DeviceNeeds run_on_device<float>(const Program&, const Call&, const DeviceCall&, Address, int64_t);
template DeviceNeeds run_on_device<double>(const Program&, const Call&, const DeviceCall&, Address, int64_t);

std::string device_obstacle(const Program&) { return kNone; }

}  // namespace metafast
