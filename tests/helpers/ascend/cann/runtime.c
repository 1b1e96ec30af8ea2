/* The runtime: memory is the host's, and what is queued on a stream is done at once. */
#include "stub.h"

#include <stdatomic.h>

enum { ALIGNMENT = 512 };

static _Thread_local int32_t device;
static atomic_size_t held;

/* Devices. */
int aclInit(const char *path) { return (void)path, OK; }

int aclrtGetDeviceCount(uint32_t *count) {
    const char *devices = getenv("ASCEND_STUB_DEVICES");
    *count = devices ? (uint32_t)atoi(devices) : 8;
    return OK;
}

int aclrtSetDevice(int32_t index) {
    uint32_t count;
    aclrtGetDeviceCount(&count);
    if (index < 0 || (uint32_t)index >= count) return ERROR_DEVICE;
    device = index;
    return OK;
}

int aclrtGetDevice(int32_t *index) { return *index = device, OK; }

const char *aclrtGetSocName(void) { return stub_chip(); }

/* Saturation is all that a chip of the first generation has. */
int stub_saturates(void) { return stub_first_generation(); }

/* Memory. What is allocated is full of NaN, so that nothing is right by luck. */
static size_t device_bytes(void) { return (stub_first_generation() ? 32ull : 64ull) << 30; }

static int allocate(void **memory, size_t bytes) {
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + ALIGNMENT;
    char *block = aligned_alloc(ALIGNMENT, rounded);
    if (!block) return ERROR_PARAMETER;
    *(size_t *)block = rounded;
    atomic_fetch_add(&held, rounded);
    *memory = memset(block + ALIGNMENT, 0xff, rounded - ALIGNMENT);
    return OK;
}

static int release(void *memory) {
    if (memory) {
        char *block = (char *)memory - ALIGNMENT;
        atomic_fetch_sub(&held, *(size_t *)block);
        free(block);
    }
    return OK;
}

int aclrtMalloc(void **memory, size_t bytes, int policy) { return (void)policy, allocate(memory, bytes); }
int aclrtMallocAlign32(void **memory, size_t bytes, int policy) { return (void)policy, allocate(memory, bytes); }
int aclrtMallocHost(void **memory, size_t bytes) { return allocate(memory, bytes); }
int aclrtFree(void *memory) { return release(memory); }
int aclrtFreeHost(void *memory) { return release(memory); }

int aclrtGetMemInfo(int kind, size_t *available, size_t *total) {
    (void)kind;
    *total = device_bytes();
    *available = *total - atomic_load(&held);
    return OK;
}

int aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, int kind) {
    (void)kind;
    if (bytes > room) return ERROR_PARAMETER;
    memmove(to, from, bytes);
    return OK;
}

int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, int kind, void *stream) {
    (void)stream;
    return aclrtMemcpy(to, room, from, bytes, kind);
}

int aclrtMemset(void *to, size_t room, int32_t value, size_t bytes) {
    if (bytes > room) return ERROR_PARAMETER;
    memset(to, value, bytes);
    return OK;
}

int aclrtMemsetAsync(void *to, size_t room, int32_t value, size_t bytes, void *stream) {
    (void)stream;
    return aclrtMemset(to, room, value, bytes);
}

/* Streams and events: handles that differ, and everything has happened already. */
static int handle(void **created) { return *created = malloc(1), OK; }

int aclrtCreateStream(void **stream) { return handle(stream); }
int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flags) {
    (void)priority, (void)flags;
    return handle(stream);
}
int aclrtCreateEvent(void **event) { return handle(event); }
int aclrtCreateEventWithFlag(void **event, uint32_t flag) { return (void)flag, handle(event); }
int aclrtCreateEventExWithFlag(void **event, uint32_t flag) { return (void)flag, handle(event); }
int aclrtGetCurrentContext(void **context) {
    static char one;
    return *context = &one, OK;
}
int aclrtQueryEventStatus(void *event, int *status) { return (void)event, *status = 1, OK; }
int aclrtQueryEventWaitStatus(void *event, int *status) { return (void)event, *status = 1, OK; }
int aclrtEventElapsedTime(float *milliseconds, void *start, void *end) {
    (void)start, (void)end;
    return *milliseconds = 0, OK;
}
