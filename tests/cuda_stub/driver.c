#include "stub.h"

int cuInit(unsigned flags) { note("cuInit"); return gpus() ? 0 : 100; }
int cuDeviceGetCount(int *count) { *count = gpus(); return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetName(char *name, int size, int gpu) { snprintf(name, size, "Stub %d", gpu); return 0; }
int cuDeviceGetPCIBusId(char *text, int size, int gpu) { snprintf(text, size, "0000:1%d:00.0", gpu); return 0; }
NOTHING(cuTensorMapEncodeTiled)

static __thread intptr_t pushed = 0; /* a context is the number of its GPU, from 1 */
int cuDevicePrimaryCtxRetain(void **context, int gpu) { *context = (void *)(intptr_t)(gpu + 1); return 0; }
int cuCtxPushCurrent_v2(void *context) { pushed = (intptr_t)context; return 0; }
int cuCtxSynchronize(void) { note("waited for GPU %d", (int)pushed - 1); return 0; }
int cuCtxPopCurrent_v2(void **context) { *context = (void *)pushed; pushed = 0; return 0; }
NOTHING(cuDevicePrimaryCtxRelease_v2)
