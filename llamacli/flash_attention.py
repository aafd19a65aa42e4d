"""`attn_implementation="flash_attention_2"`: torch's FlashAttention kernel, or an error."""

from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llamacli.errors import ResourceError


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """FlashAttention-2 (arXiv:2307.08691): q (B, H, T, D), k and v (B, K, S, D) → (B, H, T, D).

    The kernel takes no mask: with padding, and for a prompt that continues a cache, torch chooses
    another, as it does for "sdpa". On CUDA it takes float16 and bfloat16, on a CPU float32 too.

    Raises:
        ResourceError: the kernel does not take these tensors.
    """
    try:
        with nullcontext() if mask is not None else sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None and q.shape[2] > 1,
                enable_gqa=q.shape[1] != k.shape[1],
            )
    except RuntimeError as problem:
        if "No available kernel" not in str(problem):
            raise
        message = f"flash_attention_2 has no kernel for {q.dtype} on {q.device.type}"
        hint = 'attn_implementation="sdpa" takes the fastest kernel that there is'
        raise ResourceError(message, hint=hint) from problem
