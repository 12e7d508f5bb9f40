#include "stub.h"

MAKES_HANDLE(cublasCreate_v2)
MAKES_HANDLE(cublasLtCreate)
int cublasDestroy_v2(void *handle) { free(handle); return 0; }
int cublasLtDestroy(void *handle) { free(handle); return 0; }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
const char *cublasGetStatusString(int status) { return "an error of the stub"; }
