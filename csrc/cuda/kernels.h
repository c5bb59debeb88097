// What the device code of one scalar type offers to the host.
#pragma once

#include <stddef.h>

#include "cuda/job.h"

namespace metafast {

// Words that one launch of the upload kernel carries in its arguments.
constexpr int kUploadWords = 448;
struct UploadWords {
  uint64_t word[kUploadWords];
};

template <class T>
struct DeviceKernels {
  // A phase for `tasks` tasks: grid (tiles, tasks).
  void (*phase)(Phase, const DeviceJob<T>* job, int32_t index, int64_t tiles, int64_t tasks, void* stream);
  // Instructions [begin, end) of `tasks` tasks, a block each. Shared memory: shared_elements and then `hot` ones, which
  // are the hot part of the task's memory if the job has none elsewhere.
  void (*persistent)(const DeviceJob<T>* job, int32_t begin, int32_t end, int64_t tasks, int64_t hot, void* stream);
  int64_t persistent_shared_elements;
  // Writes `count` words to the device without a copy that the host would have to wait for.
  void (*upload)(const UploadWords& words, int32_t count, uint64_t* to, void* stream);
  void (*begin_chunk)(DeviceJob<T>* job, int64_t first_task, int64_t tasks, void* stream);
};

template <class T>
const DeviceKernels<T>& device_kernels();
template <>
const DeviceKernels<float>& device_kernels<float>();
template <>
const DeviceKernels<double>& device_kernels<double>();

}  // namespace metafast
