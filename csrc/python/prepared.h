// A session as Python holds it, and how it is run on tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "engine/call.h"

namespace metafast {

// What a call names a tensor by (engine/call.h): its name, and which of those with this name.
using Slot = std::tuple<std::string, size_t, size_t>;

// A tensor that a session writes: how to make one, and whether it holds zeros on entry.
struct Output {
  Address* address;
  pybind11::object like;
  bool zeros;
};

// A session, the places of the tensors in it, and how to make those that it writes.
struct Prepared {
  std::unique_ptr<Session> session;
  std::vector<Address*> inputs;
  std::vector<Output> outputs;
  pybind11::object empty_like, zeros_like;

  // Runs on the inputs and returns new outputs. In C++ because for a small network the same in Python takes longer than the
  // arithmetic.
  // overlapped(written) is called while other threads are at work already, and holds the interpreter; it must not throw.
  pybind11::list run(const std::vector<pybind11::handle>& given, Address workspace, Address stream,
                     const std::function<void(const pybind11::list& written)>& overlapped = {});
};

}  // namespace metafast
