/* The few NVML functions that the probe calls, answering for a machine with two GPUs.
   GPU 1 hides its memory size, as devices with unified memory do. STAND_IN_OLD has a bit for each
   GPU of compute capability 6. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;

static int alive;

const char *nvmlErrorString(int status) { return status == 9 ? "Driver Not Loaded" : "Error"; }

int nvmlInit_v2(void) {
    if (getenv("STAND_IN_NO_DRIVER")) return 9;
    alive++;
    return 0;
}

int nvmlShutdown(void) { return --alive; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (index >= 2) return 2;
    *handle = (void *)(size_t)(0x100000001ull + index); /* needs all 64 bits of a pointer */
    return 0;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    return strcmp(uuid, "GPU-b") ? 6 : nvmlDeviceGetHandleByIndex_v2(1, handle);
}

static int index_of(void *handle) { return (int)((size_t)handle - 0x100000001ull); }

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    snprintf(name, length, "Stand-in %d", index_of(handle));
    return 0;
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    const char *old = getenv("STAND_IN_OLD");
    *major = old && atoi(old) >> index_of(handle) & 1 ? 6 : 9;
    *minor = index_of(handle);
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    if (index_of(handle) == 1) return 3;
    memory->total = 80ull << 30;
    return 0;
}
