/* Operators of both kinds, launched without computing anything: the older ("aclop") and the newer ("aclnn").

Which there are of the newer kind, the wheel says; here is which fail. */
#include "stub.h"

#include <stdatomic.h>

enum { OPTIONS = 32, OPTION_BYTES = 256 };

/* Of what training uses, what CANN's documents list as "Atlas training series: not supported". */
static const char *const NOT_ON_FIRST_GENERATION[] = {
    "ApplyAdamWV2", "Foreach*", "Gather", "RepeatInterleaveIntWithDim", "ScatterAdd", "SwiGlu", "SwiGluGrad",
};

/* Set once an operator has failed to launch: in torch_npu's task queue no later one is launched. */
atomic_int stub_failed_launch;
static char message[256] = "no error";

const char *aclGetRecentErrMsg(void) { return message; }

static int launch(const char *name, bool supported, int error) {
    if (getenv("ASCEND_STUB_TRACE")) fprintf(stderr, "[launch] %s\n", name);
    if (supported && !stub_listed("ASCEND_STUB_FAILING", name)) return OK;
    snprintf(message, sizeof message, "E40021: %s has no kernel of operator %s", stub_chip(), name);
    return error;
}

/* This one runs in the task queue. */
int aclopCompileAndExecute(const char *name, ...) {
    int error = launch(name, true, ERROR_LAUNCH);
    if (error) atomic_store(&stub_failed_launch, 1);
    return error;
}

int aclopCompileAndExecuteV2(const char *name, ...) { return aclopCompileAndExecute(name); }

static bool matches(const char *pattern, const char *name) {
    size_t length = strlen(pattern);
    return pattern[length - 1] == '*' ? strncmp(pattern, name, length - 1) == 0 : strcmp(pattern, name) == 0;
}

/* And this one before it. */
int stub_newer_operator(const char *name) {
    bool supported = true;
    const size_t count = sizeof NOT_ON_FIRST_GENERATION / sizeof *NOT_ON_FIRST_GENERATION;
    for (size_t i = 0; stub_first_generation() && i < count; i++)
        supported = supported && !matches(NOT_ON_FIRST_GENERATION[i], name);
    return launch(name, supported, ERROR_OPERATOR);
}

/* Options of the compiler and of the system, kept as they are set. */
static char options[OPTIONS][OPTION_BYTES];

int aclSetCompileopt(int option, const char *value) {
    if (option < 0 || option >= OPTIONS) return ERROR_PARAMETER;
    snprintf(options[option], OPTION_BYTES, "%s", value);
    return OK;
}

size_t aclGetCompileoptSize(int option) { return (void)option, OPTION_BYTES; }

int aclGetCompileopt(int option, char *value, size_t room) {
    if (option < 0 || option >= OPTIONS) return ERROR_PARAMETER;
    snprintf(value, room, "%s", options[option]);
    return OK;
}

static int64_t system_options[OPTIONS];

int aclrtGetSysParamOpt(int option, int64_t *value) {
    if (option < 0 || option >= OPTIONS) return ERROR_PARAMETER;
    return *value = system_options[option], OK;
}
int aclrtSetSysParamOpt(int option, int64_t value) {
    if (option < 0 || option >= OPTIONS) return ERROR_PARAMETER;
    return system_options[option] = value, OK;
}
