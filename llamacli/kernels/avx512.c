/* See avx512.h. */

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi2")
#endif

#include "avx512.h"

const struct kernels kernels_avx512 = {
    "avx512",  matmul,     NULL,     unpack, rms_norm, to_bf16,
    widen_row, prepare, silu_mul, rotate, attend_avx512,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
