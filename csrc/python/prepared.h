// A session as Python holds it, and how it is run on tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <memory>
#include <vector>

#include "engine/call.h"

namespace metafast {

// A session, the places of the tensors in it, and how to make those that it writes.
struct Prepared {
  std::unique_ptr<Session> session;
  std::vector<Address*> inputs, outputs;
  std::vector<pybind11::object> templates;  // of the outputs
  size_t data_gradients;                    // where those outputs begin that hold zeros on entry
  pybind11::object empty_like, zeros_like;

  // Runs on inputs, None where there is none, and returns new tensors like the outputs. In C++ because for a small network
  // the same in Python takes longer than the arithmetic.
  // overlapped(written) is called while other threads are at work already, and holds the interpreter; it must not throw.
  pybind11::list run(const std::vector<pybind11::handle>& given, Address workspace, Address stream,
                     const std::function<void(const pybind11::list& written)>& overlapped = {});
};

}  // namespace metafast
