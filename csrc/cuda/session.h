// One kind of call on a device. See session.cpp.
#pragma once

#include "cuda/emitter.h"
#include "engine/call.h"

namespace metafast {

// Where and how a call runs on a device.
struct OnDevice {
  Style style = Style::kAuto;
  int device = 0;
  int64_t chunk = 0;  // tasks at a time; 0: all
  Tf32 tf32;
};

std::unique_ptr<Session> make_device_session(std::shared_ptr<const Program> program, Call call, bool is_double,
                                             OnDevice on);

// Whether every node has device code: "" or why not.
std::string device_obstacle(const Program& program);

}  // namespace metafast
