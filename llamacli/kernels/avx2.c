/* The same C, compiled for AVX2. */

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#include "generic_matmul.h"

const struct kernels kernels_avx2 = {
    "avx2", matmul, NULL, unpack, rms_norm, to_bf16, widen_row, group_sums, silu_mul, rotate, attend,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
