// In place of csrc/cuda where no nvcc was found: the same functions, which say so.
#include <stdexcept>
#include <string>

#include "cuda/session.h"

namespace metafast {

namespace {
const char kNone[] =
    "this build of metafast has no CUDA code: it was compiled where there was no nvcc, or with METAFAST_CUDA=0";
}

std::unique_ptr<Session> make_device_session(std::shared_ptr<const Program>, Call, bool, OnDevice) {
  throw std::runtime_error(kNone);
}

std::string device_obstacle(const Program&) { return kNone; }

}  // namespace metafast
