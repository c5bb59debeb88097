// What the host asks of a device: CUDA's runtime (runtime.cu), or the CPU in its place (csrc/cuda/emulated/runtime.cpp).
// Everything here raises std::runtime_error with a message for the user.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <functional>
#include <memory>
#include <string>

namespace metafast {
namespace device {

struct Properties {
  std::string name;
  int64_t shared_bytes;  // the most a block may ask for
  int multiprocessors;
};
// Also checks that the driver and the compiled code fit the device.
const Properties& properties(int device);

// Copies and waits: for what is uploaded once.
void copy_and_wait(void* to, const void* from, size_t bytes, void* stream);
bool is_capturing(void* stream);
// Raises if a launch went wrong.
void check_launch();

// A sequence of launches, recorded once and launched as one.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual void launch(void* stream) = 0;
};
// Null where the device cannot record.
std::unique_ptr<Graph> record(const std::function<void(void* stream)>& launches);

}  // namespace device
}  // namespace metafast
