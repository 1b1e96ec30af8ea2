/* What the stubs share: the simulated node is described by the environment. */
#ifndef STUB_H
#define STUB_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Errors as CANN numbers them. */
enum { OK = 0, ERROR_PARAMETER = 100000, ERROR_DEVICE = 107001, ERROR_LAUNCH = 500002, ERROR_OPERATOR = 161002 };

static inline const char *stub_chip(void) {
    const char *chip = getenv("ASCEND_STUB_SOC");
    return chip ? chip : "Ascend910A";
}

/* Atlas training series: a second generation's name has a digit past its letter (Ascend910B1, Ascend910_9391). */
static inline bool stub_first_generation(void) {
    const char *chip = stub_chip();
    return strncmp(chip, "Ascend910", 9) == 0 && chip[9] != '_' && !strpbrk(chip + 9, "0123456789");
}

/* Whether a comma-separated list in the environment has a word. */
static inline bool stub_listed(const char *variable, const char *word) {
    const char *list = getenv(variable);
    size_t length = strlen(word);
    for (const char *at = list; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strncmp(at, word, length) == 0 && (at[length] == ',' || at[length] == 0)) return true;
    return false;
}

#endif
