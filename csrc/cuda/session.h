// One kind of call on a device: everything but the addresses of the tensors, decided once. See session.cpp.
#pragma once

#include "../call.h"
#include "emitter.h"

namespace metafast {

// Where and how a call runs on a device.
struct DeviceCall {
  Style style = Style::kAuto;
  int device = 0;
  void* stream = nullptr;
  int64_t chunk = 0;      // tasks at a time; 0: all
  Address constants = 0;  // memory that lives as long as the Program, once run_on_device has asked for it
  int64_t constants_bytes = 0;
};

struct DeviceNeeds {
  int64_t workspace = 0, constants = 0;  // bytes
};

// Launches the call if the memory suffices and returns zeros; otherwise returns the bytes it needs and does nothing.
// Constants are needed once per kind of call and device. The workspace may be given back to the stream's allocator at
// once.
template <class T>
DeviceNeeds run_on_device(const Program& program, const Call& call, const DeviceCall& on, Address workspace,
                          int64_t bytes);

// Whether every step has device code: "" or why not.
std::string device_obstacle(const Program& program);

}  // namespace metafast
