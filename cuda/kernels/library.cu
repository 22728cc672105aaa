// What the binding asks of the library itself.

#include "primitives.cuh"

namespace vtc {

__global__ void probe_kernel(int* out) { *out = 0; }

}  // namespace vtc

VTC_API const char* vtc_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// Launches of this thread go to a device. Torch has its own copy of CUDA's runtime, and says it to that alone.
VTC_API int vtc_use(int device) { return cudaSetDevice(device); }

// Whether the current device can run what this library holds: 0, or why not.
VTC_API int vtc_probe() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, vtc::probe_kernel);
}
