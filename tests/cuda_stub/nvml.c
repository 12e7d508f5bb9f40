/* NVIDIA's management library: CUDA_STUB_NVML has words for what is unusual about it. */
#include "stub.h"
#include <unistd.h>

enum { NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, FUNCTION_NOT_FOUND = 13 };
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;

static int has(const char *word) {
    const char *words = getenv("CUDA_STUB_NVML");
    return words && strstr(words, word);
}

int nvmlInit_v2(void) { note("NVML"); return has("no-driver") ? 9 : 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    if (has("fails")) return 999;
    snprintf(text, size, "580.95.05");
    return 0;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **gpu) {
    note("NVML %s", bus_id);
    *gpu = (void *)0x7000000000000001; /* 64 bits must arrive again */
    return strncmp(bus_id, "0000:1", 6) ? NOT_FOUND : 0;
}
static int refused(void *gpu) {
    return gpu != (void *)0x7000000000000001 ? 2 : has("fails") ? NO_PERMISSION : 0;
}
int nvmlDeviceGetMigMode(void *gpu, unsigned *now, unsigned *later) {
    *now = has("mig");
    return has("mig") ? 0 : NOT_SUPPORTED;
}
int nvmlDeviceGetUtilizationRates(void *gpu, unsigned *shares) {
    static int asked = 0;
    shares[0] = has("busy") || (has("settles") && asked++ < 2) ? 40 : 0;
    return refused(gpu);
}
int nvmlDeviceGetCurrentClocksEventReasons(void *gpu, unsigned long long *reasons) {
    if (has("old")) return FUNCTION_NOT_FOUND;
    *reasons = 1 | 8 | (has("hot") ? 0x20 : 0) | (has("capped") ? 4 : 0);
    return refused(gpu);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *gpu, unsigned long long *reasons) {
    if (!has("old")) return FUNCTION_NOT_FOUND;
    *reasons = 0x40 | 0x80;
    return refused(gpu);
}
/* Another program, this one, and those that it has started. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *gpu, unsigned *count, Process *processes) {
    char path[64];
    unsigned found = 0, most = *count, pid = getpid();
    snprintf(path, sizeof path, "/proc/self/task/%u/children", pid);
    FILE *children = fopen(path, "r");
    if (has("many") || most < 64) return INSUFFICIENT_SIZE;
    processes[found++] = (Process){1, 5 << 20};
    do processes[found++] = (Process){pid, has("windows") ? ~0ull : 300 << 20};
    while (children && found < 64 && fscanf(children, "%u", &pid) == 1);
    if (children) fclose(children);
    *count = found;
    return refused(gpu);
}
