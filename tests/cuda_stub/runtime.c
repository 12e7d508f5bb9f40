#include "stub.h"

static __thread int current = 0;

int cudaGetDeviceCount(int *count) { *count = gpus(); return 0; }
int cudaGetDevice(int *gpu) { *gpu = current; return 0; }
int cudaSetDevice(int gpu) { note("GPU %d", gpu); current = gpu; return gpu < gpus() ? 0 : 101; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int gpu) { *value = 8; return 0; }

/* Source of the places: driver_types.h of CUDA 13, cudaDeviceProp. */
int cudaGetDeviceProperties(char *properties, int gpu) {
    memset(properties, 0, 1008);
    *(size_t *)(properties + 288) = (size_t)8 << 30; /* totalGlobalMem */
    *(int *)(properties + 308) = 32;                 /* warpSize */
    *(int *)(properties + 320) = 1024;               /* maxThreadsPerBlock */
    *(int *)(properties + 360) = 9;                  /* major */
    *(int *)(properties + 384) = 8;                  /* multiProcessorCount */
    return 0;
}

int cudaMemGetInfo(size_t *unused, size_t *total) { *unused = *total = (size_t)8 << 30; return 0; }
int cudaMalloc(void **memory, size_t size) { *memory = calloc(1, size + 256); return *memory ? 0 : 2; }
int cudaMallocHost(void **memory, size_t size) { return cudaMalloc(memory, size); }
int cudaHostAlloc(void **memory, size_t size, unsigned flags) { return cudaMalloc(memory, size); }
int cudaFree(void *memory) { free(memory); return 0; }
int cudaFreeHost(void *memory) { free(memory); return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    if (kind == 1) note("copied to the GPU: %zu", size);
    if (kind == 2) note("copied from the GPU: %zu", size);
    memcpy(to, from, size);
    return 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    return cudaMemcpy(to, from, size, kind);
}
int cudaMemset(void *memory, int value, size_t size) { memset(memory, value, size); return 0; }
int cudaMemsetAsync(void *memory, int value, size_t size, void *stream) { memset(memory, value, size); return 0; }
int cudaStreamEndCapture(void *stream, void **graph) { note("recorded"); *graph = calloc(1, 64); return 0; }
int cudaGraphInstantiate(void **made, void *graph, unsigned long long flags) { *made = calloc(1, 64); return 0; }
int cudaGraphLaunch(void *graph, void *stream) { note("replayed"); return 0; }
MAKES_HANDLE(cudaStreamCreate)
MAKES_HANDLE(cudaStreamCreateWithFlags)
MAKES_HANDLE(cudaEventCreate)
MAKES_HANDLE(cudaEventCreateWithFlags)
int cudaStreamDestroy(void *stream) { free(stream); return 0; }
int cudaEventDestroy(void *event) { free(event); return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaPointerGetAttributes(void *attributes, const void *pointer) { memset(attributes, 0, 32); return 0; }
int cudaFuncGetAttributes(void *attributes, const void *function) { memset(attributes, 0, 64); return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 1; return 0; }
const char *cudaGetErrorString(int error) { return "an error of the stub"; }
const char *cudaGetErrorName(int error) { return "stub"; }
int cudaGetDriverEntryPointByVersion(const char *name, void **function) { *function = NULL; return 0; }
void **__cudaRegisterFatBinary(void *code) { static void *handle[4]; return handle; }
int __cudaGetKernel(void **kernel, void *function) { *kernel = function; return 0; }
