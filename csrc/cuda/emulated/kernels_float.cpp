// The device code in float, for the CPU.
#include "cuda/kernels_float.cu"
