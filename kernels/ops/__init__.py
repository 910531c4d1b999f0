"""One checked function per kernel: ``from wcse.kernels import ops``.

Each op takes ``backend``: "cpp" (the native kernel: float32 tensors on the CPU), "triton" (``triton/``: float32,
float16 or bfloat16 on a GPU), "torch" (``reference.py``: any float dtype and device), or "auto" ("cpp" for tensors
on the CPU, else "triton", or "torch" where Triton is not installed or has no kernel for the op). Tensors reach the
kernels as addresses, so everything that could make an address wrong is checked here: dtype, shape, device, strides.
The native loops use as many threads as torch does at the time of the call; their results do not depend on it.

Common sizes: T rows (new tokens), Hq query heads, Hkv key/value heads, d head size, P pages of 16 tokens.
Knows nothing of models, trees or engines.
"""

from wcse.kernels.dense import DenseLinear, Fp8Linear
from wcse.kernels.ops.attention import device_plan, rope_write_kv, tree_attention
from wcse.kernels.ops.common import Backend
from wcse.kernels.ops.decoding import DecodeRows, advance, grow
from wcse.kernels.ops.layers import Layer, Shape, Stack, Step, decoder_layers, layers_by_ops
from wcse.kernels.ops.linear import Linear, linear, linear_paths
from wcse.kernels.ops.rows import Activation, add_rms_norm, gated_act, rms_norm
from wcse.kernels.ops.sampling import sample, token_logprobs
from wcse.kernels.ops.scoring import NOBODY, Groups, score_steps
from wcse.kernels.packed import (
    INTEGER,
    Format,
    PackedLinear,
    QuantizedWeight,
    pack_linear,
    pack_quantized,
    quantize,
    stack,
)
from wcse.kernels.reference import PAGE
from wcse.kernels.scaled import FP8, ScaledPages

__all__ = [
    "FP8",
    "INTEGER",
    "NOBODY",
    "PAGE",
    "Activation",
    "Backend",
    "DecodeRows",
    "DenseLinear",
    "Format",
    "Fp8Linear",
    "Groups",
    "Layer",
    "Linear",
    "PackedLinear",
    "QuantizedWeight",
    "ScaledPages",
    "Shape",
    "Stack",
    "Step",
    "add_rms_norm",
    "advance",
    "decoder_layers",
    "device_plan",
    "gated_act",
    "grow",
    "layers_by_ops",
    "linear",
    "linear_paths",
    "pack_linear",
    "pack_quantized",
    "quantize",
    "rms_norm",
    "rope_write_kv",
    "sample",
    "score_steps",
    "stack",
    "token_logprobs",
    "tree_attention",
]
