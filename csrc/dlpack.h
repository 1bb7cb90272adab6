/* Of DLPack 1.3 (github.com/dmlc/dlpack) what is read of it: tensors of others, whose memory is used where it lies. */
#ifndef FA_DLPACK_H
#define FA_DLPACK_H

#include <stdint.h>

enum { DL_CPU = 1, DL_CUDA_HOST = 3, DL_ROCM_HOST = 11 };
enum { DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_COMPLEX = 5, DL_BOOL = 6 };

typedef struct {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides; /* strides in elements; NULL: rows without gaps */
    uint64_t byte_offset;
} dl_tensor;

/* In capsules "dltensor" and "dltensor_versioned". */
typedef struct {
    dl_tensor tensor;
    void *context;
    void (*deleter)(void *);
} dl_managed_tensor;
typedef struct {
    uint32_t major, minor;
    void *context;
    void (*deleter)(void *);
    uint64_t flags;
    dl_tensor tensor;
} dl_managed_tensor_versioned;

/* In the capsule "dlpack_exchange_api", an attribute of a type: functions on its objects. `borrow` fills what is valid as long as the
   object is unchanged; -1 with an exception where it cannot. */
typedef struct {
    uint32_t major, minor;
    const void *earlier;
    void *allocate, *share, *wrap;
    int (*borrow)(void *object, dl_tensor *tensor);
    void *stream;
} dl_exchange_api;

#endif
