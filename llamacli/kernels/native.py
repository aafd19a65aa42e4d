"""The C kernels, called with tensors of the CPU, whose memory they share.

They are compiled when the package is installed. Where they could not be, `kernels()` is None and
torch computes instead. LLAMACLI_KERNELS forces a set: portable, avx2, avx512 or amx; or torch, for
none.
"""

import ctypes
import importlib.util
import os
import sys
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamacli.errors import RequestError, printable
from llamacli.memory import Arena
from llamacli.quantization import Int4Weight, QuantizedWeight

VARIABLE = "LLAMACLI_KERNELS"
SUM_GROUP = 32  # the kernels' own; divides every group size
MAX_ROWS = 16
TILE = 16

_arena = Arena()


class Matrix(ctypes.Structure):
    """`struct matrix` of kernels.h."""

    _fields_ = (
        ("data", c_void_p),
        ("bias", c_void_p),
        ("n", c_int64),
        ("k", c_int64),
        ("bits", c_int32),
        ("group_size", c_int32),
        ("activation_bits", c_int32),
    )


class Activations(ctypes.Structure):
    """`struct activations` of kernels.h."""

    _fields_ = (
        ("x", c_void_p),
        ("ld", c_int64),
        *((name, c_void_p) for name in ("sums", "scales", "integers")),
    )


class Packing(ctypes.Structure):
    """`struct packing` of engine.c."""

    _fields_ = (
        ("qdata", c_void_p),
        ("scale", c_void_p),
        ("zero_point", c_void_p),
        ("to", Matrix),
        ("tiles", c_void_p),
    )


class Product(ctypes.Structure):
    """`struct product` of engine.c."""

    _fields_ = (
        ("w", POINTER(Matrix)),
        ("x", c_void_p),
        ("y", c_void_p),
        ("rows", c_int64),
        ("activations", Activations),
    )


class Unpacking(ctypes.Structure):
    """`struct unpacking` of engine.c."""

    _fields_ = (
        ("w", POINTER(Matrix)),
        ("out", c_void_p),
        ("first", c_int64),
        ("last", c_int64),
    )


class Rows(ctypes.Structure):
    """`struct rows` of engine.c."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "up", "weight", "out")),
        ("count", c_int64),
        ("size", c_int64),
        ("eps", c_float),
        ("wide", c_void_p),
    )


class Layer(ctypes.Structure):
    """`struct layer` of engine.c."""

    _fields_ = (
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_attention_norm", "keys", "values")),
    )


class Step(ctypes.Structure):
    """`struct step` of engine.c."""

    _fields_ = (
        ("layers", POINTER(Layer)),
        ("norm", c_void_p),
        ("num_layers", c_int64),
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_size", c_int64),
        ("capacity", c_int64),
        ("eps", c_float),
        ("rows", c_int32),
        *((name, POINTER(c_int64)) for name in ("sequence", "begin", "position")),
        *((name, c_void_p) for name in ("cos", "sin", "embeddings")),
        ("token_ids", POINTER(c_int64)),
        *((name, c_void_p) for name in ("out", "scratch", "x")),
    )


@cache
def kernels() -> Any:
    """The compiled library, or None.

    Raises:
        RequestError: LLAMACLI_KERNELS names a set that cannot run here.
    """
    wanted = os.environ.get(VARIABLE) or None
    spec = importlib.util.find_spec("llamacli.kernels._native")
    if wanted == "torch" or spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    library.llamacli_use.argtypes = (c_char_p,)
    library.llamacli_name.restype = c_char_p
    library.llamacli_packed_bytes.argtypes = (POINTER(Matrix),)
    library.llamacli_packed_bytes.restype = c_int64
    library.llamacli_pack.argtypes = (POINTER(Packing),)
    library.llamacli_multiply.argtypes = (POINTER(Product), c_int)
    library.llamacli_unpack.argtypes = (POINTER(Unpacking), c_int)
    library.llamacli_norm.argtypes = (POINTER(Rows), c_int)
    library.llamacli_gate.argtypes = (POINTER(Rows), c_int)
    library.llamacli_scratch.argtypes = (POINTER(Step), c_int)
    library.llamacli_scratch.restype = c_int64
    library.llamacli_read.argtypes = (c_void_p, c_int64, c_int)
    library.llamacli_read.restype = c_uint64
    library.llamacli_step.argtypes = (POINTER(Step), c_int)
    if not library.llamacli_use(None if wanted is None else wanted.encode()):
        known = "portable, avx2, avx512, amx (as far as this CPU has them) or torch"
        raise RequestError(f"{VARIABLE} must be {known}, got {printable(wanted)}")
    _share_threads(library)
    return library


def _share_threads(library: Any) -> None:
    """Let the kernels run on the threads of torch, where these are GNU OpenMP's."""
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    with suppress(OSError, AttributeError):  # another system, or another OpenMP
        shared = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        library.llamacli_share_threads(*(ctypes.cast(shared[name], c_void_p) for name in names))


def name() -> str:
    """Of the set of kernels in use."""
    return kernels().llamacli_name().decode()  # type: ignore[no-any-return]


def dense_rows() -> int:
    """Rows of activations up to which tiles are multiplied as they are.

    For more it is faster to unpack them and let torch multiply, where the kernels have no
    instruction for bfloat16.
    """
    return 8 if name() == "portable" else sys.maxsize


def reads_bfloat16() -> bool:
    """Whether products with bfloat16 weights take less time than with float32 ones."""
    return kernels() is not None and name() != "portable"


def fits(weight: QuantizedWeight) -> bool:
    """Whether the kernels take such a weight."""
    if kernels() is None or weight.qdata.device.type != "cpu":
        return False
    if isinstance(weight, Int4Weight):
        return weight.group_size % SUM_GROUP == 0
    return weight.shape[1] % 8 == 0


def sizes(weight: QuantizedWeight) -> tuple[int, int, int, int]:
    """n, k, bits and group_size of its Matrix."""
    n, k = weight.shape
    return (n, k, 4, weight.group_size) if isinstance(weight, Int4Weight) else (n, k, 8, k)


def pack(weight: QuantizedWeight) -> Tensor:
    """The tiles of a weight, as bytes."""
    matrix = Matrix(None, None, *sizes(weight))
    parts = [weight.qdata, weight.scale]
    if isinstance(weight, Int4Weight):
        parts = [weight.qdata, weight.scale.bfloat16(), weight.zero_point.bfloat16()]
    parts = [part.contiguous() for part in parts]
    pointers = [part.data_ptr() for part in parts]
    tiles = _arena.take(kernels().llamacli_packed_bytes(byref(matrix)))
    packing = Packing(*pointers, to=matrix, tiles=tiles.data_ptr())
    kernels().llamacli_pack(byref(packing))
    return tiles


def multiply(matrix: Matrix, x: Tensor) -> Tensor:
    """x · wᵀ + bias: bfloat16 (M, K) → bfloat16 (M, N)."""
    rows, k = x.shape
    if (k, x.dtype, x.device.type) != (matrix.k, torch.bfloat16, "cpu"):
        raise ValueError(f"a weight of {matrix.k} columns and {x.dtype} {k} on {x.device}")
    x = x.contiguous()
    out = torch.empty(rows, matrix.n, dtype=torch.bfloat16)
    product = Product(ctypes.pointer(matrix), x.data_ptr(), out.data_ptr(), rows)
    if kernels().llamacli_multiply(byref(product), torch.get_num_threads()):
        raise MemoryError
    return out


def unpack(matrix: Matrix, first_tile: int, last_tile: int) -> Tensor:
    """The rows of some tiles, bfloat16 (16 · tiles, K)."""
    last_tile = min(last_tile, -(-matrix.n // TILE))
    rows = min(last_tile * TILE, matrix.n) - first_tile * TILE
    out = torch.empty(rows, matrix.k, dtype=torch.bfloat16)
    unpacking = Unpacking(ctypes.pointer(matrix), out.data_ptr(), first_tile, last_tile)
    kernels().llamacli_unpack(byref(unpacking), torch.get_num_threads())
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight: bfloat16 (…, N) and float32 (N) → bfloat16 (…, N)."""
    x = x.contiguous()
    out = torch.empty_like(x)
    count, size = x.numel() // x.shape[-1], x.shape[-1]
    pointers = (x.data_ptr(), None, weight.data_ptr(), out.data_ptr())
    if kernels().llamacli_norm(byref(Rows(*pointers, count, size, eps)), torch.get_num_threads()):
        raise MemoryError
    return out


def silu_mul_(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up in the place of gate: contiguous bfloat16 (…, N), twice."""
    pointers = (gate.data_ptr(), up.data_ptr(), None, gate.data_ptr())
    rows = Rows(*pointers, gate.numel() // gate.shape[-1], gate.shape[-1])
    kernels().llamacli_gate(byref(rows), torch.get_num_threads())
    return gate


def read(data: Tensor) -> None:
    """Read a tensor of the CPU once, as fast as the memory gives it; 256 bytes at a time."""
    kernels().llamacli_read(data.data_ptr(), data.nbytes // 256, torch.get_num_threads())
