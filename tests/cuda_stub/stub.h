/* Libraries in the place of CUDA's: CUDA_STUB_GPUS is how many GPUs there are, CUDA_STUB_LOG the file that calls are noted in. */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int gpus(void) {
    const char *count = getenv("CUDA_STUB_GPUS");
    return count ? atoi(count) : 1;
}

static void note(const char *format, ...) {
    const char *path = getenv("CUDA_STUB_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    va_list values;
    va_start(values, format);
    vfprintf(file, format, values);
    va_end(values);
    fputc('\n', file);
    fclose(file);
}

/* A function that sets what its first argument points to, to a handle that nobody looks into. */
#define MAKES_HANDLE(name) int name(void **handle) { *handle = calloc(1, 64); return 0; }
#define NOTHING(name) int name(void) { return 0; }
