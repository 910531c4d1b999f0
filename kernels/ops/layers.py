"""All layers of a decoder as one op: one native call a step, or the other ops one after another.

Knows the parts of a layer and their order, nothing of checkpoints, vocabularies, trees or engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wcse import _core
from wcse.kernels.copies import take_rows
from wcse.kernels.ops.attention import rope_write_kv, tree_attention
from wcse.kernels.ops.common import F32, I32, Backend, address, check, check_pages, pick
from wcse.kernels.ops.linear import Linear, linear, packed_weight
from wcse.kernels.ops.rows import Activation, add_rms_norm, gated_act, rms_norm
from wcse.kernels.ops.scoring import native_layer
from wcse.kernels.scaled import ScaledPages
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.kernels.triton.work import DevicePlan


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer. Norms have one number a column; optional parts are None."""

    attn_norm: Tensor
    ffn_norm: Tensor
    attn_post_norm: Tensor | None  # of what attention and MLP give, before it is added
    ffn_post_norm: Tensor | None
    q_norm: Tensor | None  # per head
    k_norm: Tensor | None
    qkv: Linear
    qkv_bias: Tensor | None
    o: Linear
    o_bias: Tensor | None
    gate_up: Linear
    gate_up_bias: Tensor | None
    down: Linear
    down_bias: Tensor | None
    window: int
    rope: int  # which of a step's rotary tables

    def matrices(self) -> tuple[tuple[Linear, Tensor | None], ...]:
        """Matrices with their biases, in the order of their use."""
        return (
            (self.qkv, self.qkv_bias),
            (self.o, self.o_bias),
            (self.gate_up, self.gate_up_bias),
            (self.down, self.down_bias),
        )

    def norms(self) -> tuple[Tensor | None, ...]:
        """Norms of the attention's input, the MLP's, what attention and MLP give, queries, keys."""
        return (
            self.attn_norm,
            self.ffn_norm,
            self.attn_post_norm,
            self.ffn_post_norm,
            self.q_norm,
            self.k_norm,
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """What all layers share; fields as in the ops that take them."""

    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    act: Activation
    eps: float
    norm_offset: float
    scale: float
    softcap: float


class Stack:
    """Layers and the norm after the last of them; ``run`` is ``decoder_layers`` of them."""

    def __init__(self, layers: Sequence[Layer], final_norm: Tensor, shape: Shape) -> None:
        """Raises WcseError where a weight on the CPU does not fit ``shape``."""
        self.layers = tuple(layers)
        self.final_norm = final_norm
        self.shape = shape
        self._native: _core.Forward | None = None

    def native(self) -> _core.Forward:
        """The layers as the native code knows them: handed over once, for it keeps addresses."""
        if self._native is None:
            shape = self.shape
            check("final_norm", self.final_norm, F32, (shape.dim,))
            self._native = _core.Forward(
                layers=[_handed_over(layer, shape) for layer in self.layers],
                final_norm=self.final_norm.data_ptr(),
                dim=shape.dim,
                n_heads=shape.n_heads,
                n_kv_heads=shape.n_kv_heads,
                d=shape.head_dim,
                eps=shape.eps,
                norm_offset=shape.norm_offset,
                scale=shape.scale,
                softcap=shape.softcap,
                gelu=shape.act == "gelu_tanh",
            )
        return self._native


def _handed_over(layer: Layer, shape: Shape) -> _core.LayerArgs:
    heads = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim
    width, inner = shape.n_heads * shape.head_dim, layer.down.k
    sizes = ((heads, shape.dim), (shape.dim, width), (2 * inner, shape.dim), (shape.dim, inner))
    for (weight, bias), (n, k) in zip(layer.matrices(), sizes, strict=True):
        if (weight.n, weight.k) != (n, k):
            raise WcseError(f"a matrix of the layer is [{weight.n}, {weight.k}]; expected [{n}, {k}]")
        if bias is not None:
            check("bias", bias, F32, (n,))
    for norm, size in zip(layer.norms(), [shape.dim] * 4 + [shape.head_dim] * 2, strict=True):
        if norm is not None:
            check("norm", norm, F32, (size,))
    return _core.LayerArgs(
        norms=[address(norm) for norm in layer.norms()],
        matrices=[native_layer(packed_weight(weight), bias) for weight, bias in layer.matrices()],
        window=layer.window,
        rope=layer.rope,
    )


@dataclass(frozen=True, slots=True)
class Step:
    """What a step brings to the layers.

    Args:
        x: [T, dim], what the first layer gets; overwritten.
        positions, slots: int32 [T]; see ``rope_write_kv``.
        plan: of this step; see ``tree_attention``.
        ropes: cosines and sines [Pmax, d / 2]; ``Layer.rope`` says which a layer takes.
        k_pages, v_pages: pools [layers, P, Hkv, d, 16] and [layers, P, Hkv, 16, d], written in place; of float32 or
            float16 for the native code; pages are contiguous, and as far apart as one likes. Other backends take pages
            of 8 bits too, a layer at a time.
        out_rows: int64 [O], the rows whose result is wanted, in this order.
    """

    x: Tensor
    positions: Tensor
    slots: Tensor
    plan: _core.Plan | DevicePlan
    ropes: Sequence[tuple[Tensor, Tensor]]
    k_pages: Tensor | Sequence[ScaledPages]
    v_pages: Tensor | Sequence[ScaledPages]
    out_rows: Tensor


def decoder_layers(stack: Stack, step: Step, *, backend: Backend = "auto") -> Tensor:
    """Run rows through all layers and write their keys and values.

    Returns:
        [O, dim] after the final norm. The native call gives the bits of ``layers_by_ops``.

    Raises:
        WcseError: a tensor does not fit, or a position, slot, page or row is out of range.
    """
    if pick(backend, step.x) != "cpp" or not isinstance(step.plan, _core.Plan):
        return layers_by_ops(stack, step, backend=backend)
    k_pages, v_pages = step.k_pages, step.v_pages
    if not (isinstance(k_pages, Tensor) and isinstance(v_pages, Tensor)):
        raise WcseError(
            "keys and values of 8 bits are for the other backends; the native code takes float32 or float16"
        )
    half = _check_step(stack, step, k_pages, v_pages)
    rows, n_out = len(step.x), len(step.out_rows)
    out = torch.empty((n_out, stack.shape.dim))
    try:
        stack.native().forward(
            step.plan,
            step.x.data_ptr(),
            rows,
            step.positions.data_ptr(),
            step.slots.data_ptr(),
            [(cos.data_ptr(), sin.data_ptr(), len(cos)) for cos, sin in step.ropes],
            k_pages.data_ptr(),
            v_pages.data_ptr(),
            k_pages.shape[1],
            k_pages.stride(1),
            k_pages.stride(0),
            half,
            step.out_rows.data_ptr(),
            n_out,
            out.data_ptr(),
            torch.get_num_threads(),
        )
    except ValueError as error:  # a position, slot, page or row out of range
        raise WcseError(str(error)) from None
    return out


def _check_step(stack: Stack, step: Step, k_pages: Tensor, v_pages: Tensor) -> bool:
    """Refuse what the native code cannot take; whether the pools hold float16."""
    shape, rows, d = stack.shape, step.x.shape[0], stack.shape.head_dim
    if rows != step.plan.n_rows:
        raise WcseError(f"x has {rows} rows but the plan has {step.plan.n_rows}; pass the plan of this step")
    if d % 8 or not 8 <= d <= 256:
        raise WcseError(f"the head size is {d}; the native kernel takes multiples of 8 up to 256")
    check("x", step.x, F32, (rows, shape.dim))
    check("positions", step.positions, I32, (rows,))
    check("slots", step.slots, I32, (rows,))
    check("out_rows", step.out_rows, torch.int64, (len(step.out_rows),))
    for cos, sin in step.ropes:
        check("cos", cos, F32, (len(cos), d // 2))
        check("sin", sin, F32, tuple(cos.shape))
    if max(layer.rope for layer in stack.layers) >= len(step.ropes):
        raise WcseError(f"the step has {len(step.ropes)} rotary tables, the layers take more")
    pages = (len(stack.layers), k_pages.shape[1], shape.n_kv_heads)
    return check_pages(k_pages, v_pages, pages, d)


def layers_by_ops(stack: Stack, step: Step, *, backend: Backend = "auto") -> Tensor:
    """``decoder_layers`` by the ops of the single parts: what it means, and how other backends run it."""
    parts, x = _Parts(stack.shape, backend), step.x
    normed = parts.norm(x, stack.layers[0].attn_norm)
    for index, layer in enumerate(stack.layers):
        attended = parts.attend(normed, layer, step, index)
        last = index + 1 == len(stack.layers)
        if last:  # after the last attention only the rows that were asked for matter
            x, attended = take_rows(x, step.out_rows), take_rows(attended, step.out_rows)
        next_norm = stack.final_norm if last else stack.layers[index + 1].attn_norm
        normed = parts.feed_forward(x, attended, layer, next_norm)
    return normed


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a layer on one backend."""

    shape: Shape
    backend: Backend

    def attend(self, normed: Tensor, layer: Layer, step: Step, index: int) -> Tensor:
        """Attention of one layer before its output projection, [T, heads * head_dim]."""
        shape, k, v = self.shape, step.k_pages[index], step.v_pages[index]
        queries = rope_write_kv(
            linear(normed, layer.qkv, bias=layer.qkv_bias, backend=self.backend),
            step.positions,
            step.slots,
            *step.ropes[layer.rope],
            k,
            v,
            n_heads=shape.n_heads,
            n_kv_heads=shape.n_kv_heads,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=shape.eps,
            norm_offset=shape.norm_offset,
            backend=self.backend,
        )
        attended = tree_attention(
            queries,
            k,
            v,
            step.plan,
            scale=shape.scale,
            softcap=shape.softcap,
            window=layer.window,
            backend=self.backend,
        )
        return attended.view(-1, shape.n_heads * shape.head_dim)

    def feed_forward(self, x: Tensor, attended: Tensor, layer: Layer, next_norm: Tensor) -> Tensor:
        """The rest of a layer. Adds to the residual ``x`` in place; returns it normed for the next layer."""
        out = linear(attended, layer.o, bias=layer.o_bias, backend=self.backend)
        if layer.attn_post_norm is not None:
            out = self.norm(out, layer.attn_post_norm)
        normed = self._add_norm(x, out, layer.ffn_norm)
        gate_up = linear(normed, layer.gate_up, bias=layer.gate_up_bias, backend=self.backend)
        inner = gated_act(gate_up, act=self.shape.act, backend=self.backend)
        out = linear(inner, layer.down, bias=layer.down_bias, backend=self.backend)
        if layer.ffn_post_norm is not None:
            out = self.norm(out, layer.ffn_post_norm)
        return self._add_norm(x, out, next_norm)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        shape = self.shape
        return rms_norm(x, weight, eps=shape.eps, offset=shape.norm_offset, backend=self.backend)

    def _add_norm(self, residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        shape = self.shape
        return add_rms_norm(
            residual, x, weight, eps=shape.eps, offset=shape.norm_offset, backend=self.backend
        )
