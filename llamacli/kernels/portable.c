/* Plain C, for any machine; on ARM the compiler uses NEON. */

#include "generic_matmul.h"

const struct kernels kernels_portable = {
    "portable", matmul, NULL, unpack, rms_norm, to_bf16, widen_row, group_sums, silu_mul, rotate, attend,
};
