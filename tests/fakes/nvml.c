/* A libnvidia-ml.so.1 in the place of the driver's: what only a machine with a GPU has. LH_NVML says how it behaves:
   ok, mig, lost (the second GPU), mismatch, unloaded, denied, hang, old; LH_NVML_HOLDERS: "pid:gpu:bytes …". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, LOST = 15, MISMATCH = 18 };
#define GIB (1ULL << 30)

typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process;

static int is(const char *word) {
    const char *mode = getenv("LH_NVML");
    return mode && !strcmp(mode, word);
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    if (is("mismatch")) return MISMATCH;
    if (is("unloaded")) return DRIVER_NOT_LOADED;
    if (is("denied")) return NO_PERMISSION;
    if (is("hang")) sleep(600);
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
int nvmlSystemGetDriverVersion(char *text, unsigned int length) {
    snprintf(text, length, "%s", is("old") ? "535.104.05" : "580.159.04");
    return OK;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = is("old") ? 12020 : 13000; return OK; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if (is("lost") && index == 1) return LOST;
    *device = (void *)(unsigned long)(index + 1);
    return OK;
}
int nvmlDeviceGetName(void *device, char *text, unsigned int length) {
    (void)device;
    snprintf(text, length, "NVIDIA H200");
    return OK;
}
int nvmlDeviceGetUUID(void *device, char *text, unsigned int length) {
    snprintf(text, length, "GPU-%lu", (unsigned long)device);
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory) {
    memory->total = 24 * GIB;
    memory->reserved = 0;
    memory->used = device == (void *)1 ? 4 * GIB : 0;
    memory->free = memory->total - memory->used;
    return OK;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    (void)device;
    *major = 9, *minor = 0;
    return OK;
}
int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending) {
    *current = *pending = is("mig") && device == (void *)1;
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process *found) {
    const char *left = getenv("LH_NVML_HOLDERS");
    unsigned int room = *count, there = 0, pid, gpu;
    unsigned long long used;
    int length;
    for (; left && sscanf(left, "%u:%u:%llu %n", &pid, &gpu, &used, &length) == 3; left += length)
        if (device == (void *)(unsigned long)(gpu + 1)) {
            if (there < room) found[there] = (process){pid, used, 0, 0};
            there++;
        }
    *count = there;
    return there > room ? INSUFFICIENT_SIZE : OK;
}
