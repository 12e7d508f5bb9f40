#include "stub.h"

int cuInit(unsigned flags) { note("cuInit"); return gpus() ? 0 : 100; }
int cuDeviceGetCount(int *count) { *count = gpus(); return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetName(char *name, int size, int gpu) { snprintf(name, size, "Stub %d", gpu); return 0; }
int cuDeviceGetPCIBusId(char *text, int size, int gpu) { snprintf(text, size, "0000:1%d:00.0", gpu); return 0; }
NOTHING(cuTensorMapEncodeTiled)
