/* Elementwise reductions of HCCL's types, each rounded to its type. */
#ifndef REDUCE_H
#define REDUCE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* As HCCL numbers them. */
typedef enum { INT8, INT16, INT32, FP16, FP32, INT64, UINT64, UINT8, UINT16, UINT32, FP64, BF16 } Type;
typedef enum { SUM, PROD, MAX, MIN } Operation;

static inline size_t size_of(Type type) {
    static const size_t sizes[] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2};
    return sizes[type];
}

static inline float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* To the nearest, ties to even. */
static inline uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#define COMBINE(operation, a, b) \
    ((operation) == SUM ? (a) + (b) : (operation) == PROD ? (a) * (b) : ((operation) == MAX) == ((a) > (b)) ? (a) : (b))

#define REDUCE_AS(C_TYPE)                                              \
    {                                                                  \
        C_TYPE *into = output;                                         \
        const C_TYPE *with = input;                                    \
        for (size_t i = 0; i < bytes / sizeof(C_TYPE); i++)            \
            into[i] = (C_TYPE)COMBINE(operation, into[i], with[i]);    \
        break;                                                         \
    }

static inline void reduce(Type type, Operation operation, void *output, const void *input, size_t bytes) {
    switch (type) {
    case INT8: REDUCE_AS(int8_t)
    case INT16: REDUCE_AS(int16_t)
    case INT32: REDUCE_AS(int32_t)
    case INT64: REDUCE_AS(int64_t)
    case UINT8: REDUCE_AS(uint8_t)
    case UINT16: REDUCE_AS(uint16_t)
    case UINT32: REDUCE_AS(uint32_t)
    case UINT64: REDUCE_AS(uint64_t)
    case FP16: REDUCE_AS(_Float16)
    case FP32: REDUCE_AS(float)
    case FP64: REDUCE_AS(double)
    case BF16: {
        uint16_t *into = output;
        const uint16_t *with = input;
        for (size_t i = 0; i < bytes / 2; i++)
            into[i] = to_bf16(COMBINE(operation, from_bf16(into[i]), from_bf16(with[i])));
        break;
    }
    }
}

#endif
