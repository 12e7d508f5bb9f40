/* cuDNN's graphs, as far as a convolution is planned and run: two engines, the better one of which needs tensor cores. */
#include "stub.h"

enum { TENSOR_CORES, PLAIN, ENGINES };
/* cudnn_graph.h: cudnnBackendDescriptorType_t and cudnnBackendAttributeName_t */
enum { PLAN = 5 };
enum { RESULTS = 202, ENGINE = 300, WORKSPACE = 303, SHARED_MEMORY = 304, ENGINE_OF_PLAN = 401 };
enum { WORKSPACE_OF_PLAN = 402, STRIDES = 903, INDEX = 1301, NUMERIC_NOTES = 1303 };
typedef struct { int type, engine; } Descriptor;

size_t cudnnGetVersion(void) { return 92400; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int status) { return "an error of the stub"; }
void cudnnGetLastErrorString(char *text, size_t size) { if (size) *text = 0; }

int cudnnBackendCreateDescriptor(int type, void **made) {
    Descriptor *descriptor = calloc(1, sizeof *descriptor);
    descriptor->type = type;
    *made = descriptor;
    return 0;
}
int cudnnBackendDestroyDescriptor(void *descriptor) { free(descriptor); return 0; }

int cudnnBackendSetAttribute(Descriptor *own, int name, int type, int64_t count, const void *values) {
    if (name == ENGINE || name == ENGINE_OF_PLAN) own->engine = (*(Descriptor *const *)values)->engine;
    if (name == INDEX) own->engine = (int)*(const int64_t *)values;
    const int64_t *strides = values; /* of batch, channels, height, width */
    if (name == STRIDES && count == 4 && strides[1] == 1 && strides[3] > 1) note("channels last");
    return 0;
}

int cudnnBackendGetAttribute(Descriptor *own, int name, int type, int64_t wanted, int64_t *count, void *values) {
    int64_t have = 0;
    if (name == RESULTS) {
        have = ENGINES;
        for (int i = 0; values && i < wanted && i < ENGINES; i++) ((Descriptor **)values)[i]->engine = i;
    } else if (name == ENGINE) {
        have = 1;
        if (values) (*(Descriptor **)values)->engine = own->engine;
    } else if (name == INDEX || name == WORKSPACE || name == WORKSPACE_OF_PLAN) {
        have = 1;
        if (values) *(int64_t *)values = name == INDEX ? own->engine : 0;
    } else if (name == SHARED_MEMORY) {
        have = 1;
        if (values) *(int32_t *)values = 0;
    } else if (name == NUMERIC_NOTES && own->engine == TENSOR_CORES) {
        have = 1;
        if (values && wanted > 0) *(int *)values = 0; /* CUDNN_NUMERICAL_NOTE_TENSOR_CORE */
    }
    if (count) *count = have;
    return 0;
}

int cudnnBackendFinalize(Descriptor *own) { if (own->type == PLAN) note("plan"); return 0; }
int cudnnBackendExecute(void *handle, Descriptor *plan, void *variants) {
    note("convolution on %s", plan->engine == TENSOR_CORES ? "tensor cores" : "plain cores");
    return 0;
}

int cudnnGetStream(void *handle, void **stream) { *stream = NULL; return 0; }
int cudnnDestroy(void *handle) { free(handle); return 0; }
MAKES_HANDLE(cudnnCreate)
MAKES_HANDLE(cudnnCreateTensorDescriptor)
MAKES_HANDLE(cudnnCreateFilterDescriptor)
MAKES_HANDLE(cudnnCreateConvolutionDescriptor)
MAKES_HANDLE(cudnnCreatePoolingDescriptor)
NOTHING(cudnnDestroyTensorDescriptor)
NOTHING(cudnnDestroyFilterDescriptor)
NOTHING(cudnnDestroyConvolutionDescriptor)
NOTHING(cudnnDestroyPoolingDescriptor)
NOTHING(cudnnSetStream)
NOTHING(cudnnAddTensor)
NOTHING(cudnnSetTensorNdDescriptor)
NOTHING(cudnnSetFilterNdDescriptor)
NOTHING(cudnnSetConvolutionNdDescriptor)
NOTHING(cudnnSetConvolutionGroupCount)
NOTHING(cudnnSetConvolutionMathType)
NOTHING(cudnnSetPoolingNdDescriptor)
NOTHING(cudnnPoolingForward)
NOTHING(cudnnSoftmaxForward)
