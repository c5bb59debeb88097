// The device code in float.
#define METAFAST_ISA device_float
#include "cuda/kernels.cuh"

namespace metafast {

template <>
const DeviceKernels<float>& device_kernels<float>() {
  static const DeviceKernels<float> kernels = METAFAST_ISA::kernel_table<float>();
  return kernels;
}

}  // namespace metafast
