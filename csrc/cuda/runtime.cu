// What runtime.h promises, by CUDA's runtime.
#include "cuda/runtime.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

namespace metafast {
namespace device {
namespace {

void check(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forget it: it has been told
  std::string message = std::string("metafast: ") + doing + ": " + cudaGetErrorString(error);
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorStubLibrary:
      message += ". metafast was compiled with CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
                 std::to_string(CUDART_VERSION % 1000 / 10) + "; install a driver that is as new, or use the CPU";
      break;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidDeviceFunction:
      message +=
          ". metafast has no code for this GPU: metafast.native.build_info()[\"cuda_archs\"] lists what it was "
          "compiled "
          "for; TORCH_CUDA_ARCH_LIST adds to it at build time";
      break;
    default: break;
  }
  throw std::runtime_error(message);
}

__global__ void nothing() {}

Properties find(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "asking for the properties of the GPU");
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, nothing), properties.name);
  return {properties.name, int64_t(properties.sharedMemPerBlockOptin), properties.multiProcessorCount};
}

struct Recording : Graph {
  cudaGraphExec_t executable = nullptr;
  ~Recording() override {
    if (executable) cudaGraphExecDestroy(executable);
  }
  void launch(void* stream) override {
    check(cudaGraphLaunch(executable, static_cast<cudaStream_t>(stream)), "launching a graph");
  }
};

}  // namespace

const Properties& properties(int device) {
  static std::mutex mutex;
  static std::map<int, Properties> known;
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known[device] = find(device);
}

void copy_and_wait(void* to, const void* from, size_t bytes, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, on), "copying to the GPU");
  check(cudaStreamSynchronize(on), "copying to the GPU");
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "asking about the stream");
  return status != cudaStreamCaptureStatusNone;
}

void check_launch() { check(cudaGetLastError(), "launching a kernel"); }

// On a stream of its own: that of the caller may be one that cannot be captured.
std::unique_ptr<Graph> record(const std::function<void(void*)>& launches) {
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  cudaGraph_t graph = nullptr;
  auto made = std::make_unique<Recording>();
  try {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording a graph");
    try {
      launches(stream);
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph), "recording a graph");
    check(cudaGraphInstantiateWithFlags(&made->executable, graph, 0), "making a graph");
  } catch (...) {
    if (graph) cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    throw;
  }
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return made;
}

}  // namespace device
}  // namespace metafast
