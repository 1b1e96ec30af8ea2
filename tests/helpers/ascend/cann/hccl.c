/* HCCL between processes of one host, over shared memory: a file for each communicator.

What is called returns when it is done. A rank that does not come makes the others fail after
ASCEND_STUB_HCCL_SECONDS. Reductions add rank after rank, in the tensor's own type, the same on all ranks. */
#include "stub.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "reduce.h"

enum { RANKS = 8, CHUNK = 1 << 18, NAME_BYTES = 128, ID_BYTES = 16 };
enum { NOT_SUPPORTED = 5, TIMED_OUT = 9, INTERNAL = 4 };

/* On its way from one rank to another: full while one more was written than read. */
typedef struct {
    atomic_ullong written, read;
    size_t bytes;
    char content[CHUNK];
} Mailbox;

typedef struct {
    atomic_ullong arrived[RANKS];
    char slot[RANKS][CHUNK];
    Mailbox mailbox[RANKS][RANKS];
} Shared;

typedef struct {
    uint32_t rank, size;
    uint64_t meetings;
    Shared *shared;
    char name[NAME_BYTES];
} Communicator;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double deadline(void) {
    const char *seconds = getenv("ASCEND_STUB_HCCL_SECONDS");
    return now() + (seconds ? atof(seconds) : 120);
}

static bool pause_until(double end) {
    const struct timespec moment = {0, 50000};
    nanosleep(&moment, NULL);
    return now() < end;
}

/* Wait until every rank has come here as often as this one. */
static int meet(Communicator *self) {
    double end = deadline();
    uint64_t turn = ++self->meetings;
    atomic_store(&self->shared->arrived[self->rank], turn);
    for (uint32_t rank = 0; rank < self->size; rank++)
        while (atomic_load(&self->shared->arrived[rank]) < turn)
            if (!pause_until(end)) return TIMED_OUT;
    return OK;
}

/* Communicators. */
int HcclGetRootInfo(void *root) {
    return getrandom(root, ID_BYTES, 0) == ID_BYTES ? OK : INTERNAL;
}

int HcclCommInitRootInfo(uint32_t size, const void *root, uint32_t rank, void **created) {
    if (size > RANKS || rank >= size) return NOT_SUPPORTED;
    Communicator *self = calloc(1, sizeof *self);
    self->rank = rank, self->size = size;
    int length = snprintf(self->name, NAME_BYTES, "hccl");
    for (int i = 0; i < ID_BYTES; i++)
        length += snprintf(self->name + length, NAME_BYTES - length, "%02x", ((const unsigned char *)root)[i]);
    char path[4096];
    const char *folder = getenv("ASCEND_RECORD");
    snprintf(path, sizeof path, "%s/%s", folder ? folder : "/dev/shm", self->name);
    int file = open(path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, sizeof(Shared))) return INTERNAL;
    self->shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (self->shared == MAP_FAILED) return INTERNAL;
    int error = meet(self);
    unlink(path);
    *created = self;
    return error;
}

int HcclCommInitRootInfoConfig(uint32_t size, const void *root, uint32_t rank, const void *config, void **created) {
    (void)config;
    return HcclCommInitRootInfo(size, root, rank, created);
}

int HcclCommDestroy(void *communicator) {
    Communicator *self = communicator;
    munmap(self->shared, sizeof(Shared));
    free(self);
    return OK;
}

int HcclGetCommAsyncError(void *communicator, int *error) { return (void)communicator, *error = OK, OK; }

int HcclGetCommName(void *communicator, char *name) {
    strcpy(name, ((Communicator *)communicator)->name);
    return OK;
}

const char *HcclGetErrorString(int error) {
    return error == TIMED_OUT ? "a rank did not come in time" : error == NOT_SUPPORTED ? "not supported" : "internal";
}

/* Collectives: every rank shows its bytes, a chunk at a time, and takes what it needs of the others'. */
typedef struct {
    char *output;
    size_t bytes; /* of a rank's share */
    uint32_t rank, root;
    Type type;
    Operation operation;
} Taking;
typedef void Take(Taking *self, uint32_t from, size_t offset, const char *content, size_t bytes);

static int exchange(Communicator *self, const char *given, size_t total, Take *take, Taking *taking) {
    taking->rank = self->rank;
    for (size_t offset = 0; offset < total; offset += CHUNK) {
        size_t bytes = total - offset < CHUNK ? total - offset : CHUNK;
        if (given) memcpy(self->shared->slot[self->rank], given + offset, bytes);
        int error = meet(self);
        if (error) return error;
        for (uint32_t from = 0; from < self->size; from++)
            take(taking, from, offset, self->shared->slot[from], bytes);
        if ((error = meet(self))) return error;
    }
    return OK;
}

static void take_reduced(Taking *self, uint32_t from, size_t offset, const char *content, size_t bytes) {
    if (from == 0) memcpy(self->output + offset, content, bytes);
    else reduce(self->type, self->operation, self->output + offset, content, bytes);
}

static void take_reduced_on_root(Taking *self, uint32_t from, size_t offset, const char *content, size_t bytes) {
    if (self->rank == self->root) take_reduced(self, from, offset, content, bytes);
}

static void take_root(Taking *self, uint32_t from, size_t offset, const char *content, size_t bytes) {
    if (from == self->root) memcpy(self->output + offset, content, bytes);
}

static void take_all(Taking *self, uint32_t from, size_t offset, const char *content, size_t bytes) {
    memcpy(self->output + from * self->bytes + offset, content, bytes);
}

/* What of a chunk lies in this rank's share; its length, 0 for nothing. */
static size_t of_share(const Taking *self, size_t *offset, const char **content, size_t bytes) {
    size_t begin = self->rank * self->bytes, end = begin + self->bytes;
    size_t from = *offset > begin ? *offset : begin, to = *offset + bytes < end ? *offset + bytes : end;
    if (from >= to) return 0;
    *content += from - *offset;
    *offset = from - begin;
    return to - from;
}

static void take_reduced_share(Taking *self, uint32_t from, size_t offset, const char *content, size_t bytes) {
    bytes = of_share(self, &offset, &content, bytes);
    if (bytes) take_reduced(self, from, offset, content, bytes);
}

static void take_share_of_root(Taking *self, uint32_t from, size_t offset, const char *content, size_t bytes) {
    bytes = of_share(self, &offset, &content, bytes);
    if (bytes) take_root(self, from, offset, content, bytes);
}

static void take_share_of_each(Taking *self, uint32_t from, size_t offset, const char *content, size_t bytes) {
    bytes = of_share(self, &offset, &content, bytes);
    if (bytes) take_all(self, from, offset, content, bytes);
}

static bool reduces(Type type) {
    bool common = type == INT8 || type == INT32 || type == INT64 || type == FP16 || type == FP32;
    return common || (!stub_first_generation() && (type == INT16 || type == BF16));
}

int HcclAllReduce(void *input, void *output, uint64_t count, Type type, Operation operation, void *comm, void *stream) {
    (void)stream;
    if (!reduces(type)) return NOT_SUPPORTED;
    Taking taking = {.output = output, .type = type, .operation = operation};
    return exchange(comm, input, count * size_of(type), take_reduced, &taking);
}

int HcclReduce(void *input, void *output, uint64_t count, Type type, Operation operation, uint32_t root, void *comm,
               void *stream) {
    (void)stream;
    if (!reduces(type)) return NOT_SUPPORTED;
    Taking taking = {.output = output, .type = type, .operation = operation, .root = root};
    return exchange(comm, input, count * size_of(type), take_reduced_on_root, &taking);
}

int HcclReduceScatter(void *input, void *output, uint64_t count, Type type, Operation operation, void *comm,
                      void *stream) {
    (void)stream;
    if (!reduces(type)) return NOT_SUPPORTED;
    Taking taking = {.output = output, .bytes = count * size_of(type), .type = type, .operation = operation};
    return exchange(comm, input, taking.bytes * ((Communicator *)comm)->size, take_reduced_share, &taking);
}

int HcclBroadcast(void *buffer, uint64_t count, Type type, uint32_t root, void *comm, void *stream) {
    (void)stream;
    Taking taking = {.output = buffer, .root = root};
    return exchange(comm, buffer, count * size_of(type), take_root, &taking);
}

int HcclAllGather(void *input, void *output, uint64_t count, Type type, void *comm, void *stream) {
    (void)stream;
    Taking taking = {.output = output, .bytes = count * size_of(type)};
    return exchange(comm, input, taking.bytes, take_all, &taking);
}

int HcclScatter(void *input, void *output, uint64_t count, Type type, uint32_t root, void *comm, void *stream) {
    (void)stream;
    Communicator *self = comm;
    Taking taking = {.output = output, .bytes = count * size_of(type), .root = root};
    return exchange(self, self->rank == root ? input : NULL, taking.bytes * self->size, take_share_of_root, &taking);
}

int HcclAlltoAll(const void *input, uint64_t count, Type type, const void *output, uint64_t received, Type same,
                 void *comm, void *stream) {
    (void)received, (void)same, (void)stream;
    Taking taking = {.output = (char *)output, .bytes = count * size_of(type)};
    return exchange(comm, input, taking.bytes * ((Communicator *)comm)->size, take_share_of_each, &taking);
}

/* From rank to rank. The first chunk of a message is sent without waiting for its receiver. */
typedef struct {
    int is_receive;
    char *buffer;
    uint64_t count;
    Type type;
    uint32_t peer;
} Item;

/* Move on by a chunk if the mailbox allows; the bytes moved. */
static size_t step(Communicator *self, const Item *item, size_t done, size_t total) {
    uint32_t from = item->is_receive ? item->peer : self->rank, to = item->is_receive ? self->rank : item->peer;
    Mailbox *box = &self->shared->mailbox[from][to];
    bool full = atomic_load(&box->written) > atomic_load(&box->read);
    if (full != (bool)item->is_receive) return 0;
    size_t bytes = total - done < CHUNK ? total - done : CHUNK;
    if (item->is_receive) {
        bytes = box->bytes < bytes ? box->bytes : bytes;
        memcpy(item->buffer + done, box->content, bytes);
        atomic_fetch_add(&box->read, 1);
    } else {
        memcpy(box->content, item->buffer + done, bytes);
        box->bytes = bytes;
        atomic_fetch_add(&box->written, 1);
    }
    return bytes;
}

int HcclBatchSendRecv(void *listed, uint32_t count, void *comm, void *stream) {
    (void)stream;
    const Item *items = listed;
    double end = deadline();
    size_t done[count];
    memset(done, 0, sizeof done);
    for (bool waiting = true; waiting;) {
        size_t moved = 0;
        waiting = false;
        for (uint32_t i = 0; i < count; i++) {
            size_t total = items[i].count * size_of(items[i].type);
            bool earlier = false; /* Messages between two ranks keep their order. */
            for (uint32_t k = 0; k < i; k++)
                earlier |= items[k].is_receive == items[i].is_receive && items[k].peer == items[i].peer &&
                           done[k] < items[k].count * size_of(items[k].type);
            if (done[i] < total && !earlier) {
                size_t bytes = step(comm, &items[i], done[i], total);
                done[i] += bytes, moved += bytes;
            }
            waiting |= done[i] < total;
        }
        if (waiting && !moved && !pause_until(end)) return TIMED_OUT;
    }
    return OK;
}

int HcclSend(void *buffer, uint64_t count, Type type, uint32_t to, void *comm, void *stream) {
    Item item = {false, buffer, count, type, to};
    return HcclBatchSendRecv(&item, 1, comm, stream);
}

int HcclRecv(void *buffer, uint64_t count, Type type, uint32_t from, void *comm, void *stream) {
    Item item = {true, buffer, count, type, from};
    return HcclBatchSendRecv(&item, 1, comm, stream);
}
