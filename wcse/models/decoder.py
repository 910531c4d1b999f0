"""One decoder for every architecture: a ``ModelSpec`` says which parts of the Llama block are switched on.

``forward`` runs a batch of rows (new tokens) against paged keys and values and returns hidden states;
``logits`` is a separate call, so that a verifier never pays for the vocabulary. Each row's result depends on
its own path only, not on the rows beside it. Knows nothing of requests, sampling, page allocation, files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wcse import _core
from wcse.kernels import ops
from wcse.kernels.copies import join_rows, take_rows
from wcse.models.spec import LayerSpec, ModelSpec, Rope
from wcse.models.weights import Weights
from wcse.types import Quantization, WcseError

LOGIT_ROWS = 128  # rows of logits held at once where only one number of each is wanted


@dataclass(frozen=True, slots=True)
class Batch:
    """T rows, in the row order of ``plan`` (``wcse._core.plan``)."""

    tokens: Tensor  # int64 [T]
    positions: Tensor  # int32 [T], absolute
    slots: Tensor  # int32 [T], where the row's keys and values go: page * 16 + offset
    plan: Any  # wcse._core.Plan, or what ops.device_plan made of it
    out_rows: Tensor  # int64 [O], the rows whose hidden state is wanted, in the order wanted


class KVPool:
    """Keys and values of ``num_pages`` pages for every layer, zero-filled; float32 unless a device is given.

    ``k[layer]`` is [pages, kv heads, head_dim, 16] (transposed: a page of keys is one GEMM panel) and
    ``v[layer]`` is [pages, kv heads, 16, head_dim]. With a ``device`` keys are stored as the values are, and ``k``
    is a transposed view: what the Triton kernels read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_pages: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        heads, d = spec.n_kv_heads, spec.head_dim
        self.num_pages = num_pages
        self.bytes_per_page = self.page_bytes(spec, dtype)
        if device is not None:
            shape = (num_pages, heads, ops.PAGE, d)
            self.k = [torch.zeros(shape, device=device, dtype=dtype).transpose(2, 3) for _ in spec.layers]
            self.v = [torch.zeros(shape, device=device, dtype=dtype) for _ in spec.layers]
            return
        self.k = [_lazy_zeros(num_pages, heads, d, ops.PAGE) for _ in spec.layers]
        self.v = [_lazy_zeros(num_pages, heads, ops.PAGE, d) for _ in spec.layers]

    def forget(self, pages: NDArray[np.int32]) -> None:
        """Give the memory behind these pages of a pool on a CPU back to the system; they read as zeros then."""
        for tensor in (*self.k, *self.v):
            _core.decommit_blocks(tensor.data_ptr(), tensor[0].nbytes, pages)

    @staticmethod
    def page_bytes(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of one page over all layers, keys and values."""
        return len(spec.layers) * 2 * spec.n_kv_heads * spec.head_dim * ops.PAGE * dtype.itemsize


def _lazy_zeros(*shape: int) -> Tensor:
    """Float32 zeros on a cache-line boundary that take memory only where they are written to."""
    count = math.prod(shape)
    raw = np.zeros(count + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return torch.from_numpy(raw[start : start + count].reshape(shape))


class RopeTable:
    """Cosines and sines [positions, head_dim/2] of one rope.

    They are grown on demand, so a long context costs nothing until a path is that long.
    """

    def __init__(
        self, rope: Rope, head_dim: int, factors: Tensor | None = None, device: torch.device | None = None
    ) -> None:
        """``factors`` [head_dim/2], when given, divide the frequencies (how GGUF stores llama3 scaling)."""
        self._device = device
        self._frequencies = _frequencies(rope, head_dim)
        if factors is not None:
            self._frequencies = self._frequencies / factors
        self.cos = self.sin = torch.empty(0, head_dim // 2)

    def grow(self, positions: int) -> None:
        """Make rows 0 .. positions-1 available; rows that exist keep their bits."""
        if positions <= len(self.cos):
            return
        length = max(1024, 1 << (positions - 1).bit_length())
        angles = torch.outer(torch.arange(length, dtype=torch.float32), self._frequencies)
        self.cos, self.sin = angles.cos().to(self._device), angles.sin().to(self._device)


def _frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Angle per position of each pair of dimensions, [head_dim/2]; in float32, as transformers does."""
    if rope.kind == "none":
        return torch.zeros(head_dim // 2)
    base = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.kind == "linear":
        return base / rope.factor
    if rope.kind == "llama3":
        return _llama3(base, rope)
    return base


def _llama3(base: Tensor, rope: Rope) -> Tensor:
    """Llama 3.1: wavelengths beyond the original context are stretched by ``factor``, short ones are kept."""
    wavelength = 2 * math.pi / base
    low, high = rope.low_freq_factor, rope.high_freq_factor
    share = ((rope.original_context / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - share) * base / rope.factor + share * base


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer, ready for the kernels. Optional parts are None."""

    spec: LayerSpec
    rope: RopeTable
    attn_norm: Tensor
    ffn_norm: Tensor
    attn_post_norm: Tensor | None  # sandwich norms
    ffn_post_norm: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    qkv: ops.Linear
    qkv_bias: Tensor | None
    o: ops.Linear
    o_bias: Tensor | None
    gate_up: ops.Linear
    gate_up_bias: Tensor | None
    down: ops.Linear
    down_bias: Tensor | None


class Decoder:
    """A model in memory. Immutable apart from its rope tables, which grow; float32 on the CPU.

    On another device, or with the Triton backend, weights, hidden states, keys and values have ``dtype``, and
    batches come from ``place``; norms' weights and rope tables stay float32.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        *,
        lm_head: bool = True,
        backend: ops.Backend = "auto",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        quantization: Quantization | None = None,
    ) -> None:
        """Read and pack the weights, one layer at a time.

        Args:
            lm_head: read the output matrix; without it ``logits`` is an error, and the checkpoint of a
                verifier need not have one.
            backend: which kernels to use, as in ``wcse.kernels.ops``.
            device: where the weights go; see above.
            dtype: on that device.
            quantization: how matrices are kept in memory. None: float32. "int8" and "int4": quantised while they
                are read, as in ``ops.pack_linear``; with "int4" the embedding and the output matrix have 8 bits,
                for they cost most accuracy. "gguf": in the codes of the file, which gives the bits of None.

        Raises:
            WcseError: a tensor is missing or has another shape than the spec says.
        """
        self.spec = spec
        self.backend = backend
        self.device = torch.device(device)
        self.dense = self.device.type != "cpu" or backend == "triton"
        self.dtype = dtype if self.dense else torch.float32
        if self.dense and quantization is not None:
            raise WcseError(f"quantization={quantization!r} is for the CPU; leave it out on {self.device}")
        self.quantization = quantization
        self._head: ops.Linear | None = None
        if lm_head:
            name = "embed_tokens" if spec.tied else "lm_head"
            self._head = self._vocabulary(f"{name}.weight", weights)
        self._embedding = self._read_embedding(weights)
        self._ropes = _rope_tables(spec, weights, self.device)
        self._layers = [self._read_layer(i, layer, weights) for i, layer in enumerate(spec.layers)]
        self._norm = weights.tensor("norm.weight", spec.dim).to(self.device, torch.float32)

    def _pack(
        self, weights: Weights, parts: dict[str, int], columns: int, quantization: Quantization | None
    ) -> ops.Linear:
        """Matrices [rows, columns] below one another, packed; ``parts`` maps their names to their rows."""
        if quantization == "gguf":
            stored = [weights.quantized(name, size, columns) for name, size in parts.items()]
            codes = [part for part in stored if part is not None]
            if len(codes) == len(stored):
                return ops.pack_quantized(ops.stack(codes))
        rows = [weights.tensor(name, size, columns) for name, size in parts.items()]
        matrix = rows[0] if len(rows) == 1 else torch.cat(rows)
        if self.dense:
            return ops.DenseLinear(matrix.to(self.device, self.dtype))
        return ops.pack_linear(matrix, "fp32" if quantization in (None, "gguf") else quantization)

    def pool(self, num_pages: int) -> KVPool:
        """Keys and values for this decoder."""
        return KVPool(self.spec, num_pages, device=self.device if self.dense else None, dtype=self.dtype)

    @property
    def rope_rows(self) -> int:
        """Rows of the longest rope table; it changes when tables are replaced by longer ones."""
        return max(len(table.cos) for table in self._ropes.values())

    def place(self, batch: Batch, *, upload: bool = True) -> Batch:
        """The batch on the decoder's device, uploaded without waiting. Its plan serves all layers.

        ``upload=False`` checks tokens, grows the rope tables and makes the plan, and leaves the tensors.
        """
        if not self.dense:
            return batch
        spec = self.spec
        plan = ops.device_plan(
            batch.plan,
            self.device,
            n_heads=spec.n_heads,
            n_kv=spec.n_kv_heads,
            head_dim=spec.head_dim,
            dtype=self.dtype,
        )
        self._check_tokens(batch.tokens)
        self._grow_ropes(batch.positions)
        parts = (batch.tokens, batch.positions, batch.slots)
        if not upload:
            return Batch(*parts, plan, batch.out_rows)
        tokens, positions, slots = (x.to(self.device, non_blocking=True) for x in parts)
        return Batch(tokens, positions, slots, plan, batch.out_rows.to(self.device, non_blocking=True))

    def _vocabulary(self, name: str, weights: Weights) -> ops.Linear:
        """The matrix of one row per token; never of 4 bits."""
        how = "int8" if self.quantization == "int4" else self.quantization
        return self._pack(weights, {name: self.spec.vocab_size}, self.spec.dim, how)

    def _read_embedding(self, weights: Weights) -> Tensor | ops.Linear:
        spec, name = self.spec, "embed_tokens.weight"
        # A tied embedding is read out of the packed output matrix: a second copy may be a quarter of the model.
        if spec.tied and self._head:
            return self._head
        if self.quantization is not None:
            return self._vocabulary(name, weights)
        return weights.tensor(name, spec.vocab_size, spec.dim).to(self.device, self.dtype)

    @property
    def weight_bytes(self) -> int:
        """Memory of the matrices; norms and biases are small beside them."""
        matrices = [m for la in self._layers for m in (la.qkv, la.o, la.gate_up, la.down)]
        if self._head is not None:
            matrices.append(self._head)
        total = sum(matrix.nbytes for matrix in matrices)
        return total if self._embedding is self._head else total + self._embedding.nbytes

    def _read_layer(self, index: int, layer: LayerSpec, weights: Weights) -> _Layer:
        spec, prefix = self.spec, f"layers.{index}."
        q_dim, kv_dim = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim

        def vector(name: str, size: int, wanted: bool = True) -> Tensor | None:
            return weights.tensor(prefix + name, size).to(self.device, torch.float32) if wanted else None

        def norm(name: str) -> Tensor:
            return weights.tensor(prefix + name, spec.dim).to(self.device, torch.float32)

        def fused(parts: dict[str, int], columns: int) -> ops.Linear:
            named = {f"{prefix}{name}.weight": size for name, size in parts.items()}
            return self._pack(weights, named, columns, self.quantization)

        def bias(parts: dict[str, int], wanted: bool) -> Tensor | None:
            if not wanted:
                return None
            return torch.cat(
                [weights.tensor(f"{prefix}{name}.bias", size) for name, size in parts.items()]
            ).to(self.device, self.dtype)

        qkv = {"self_attn.q_proj": q_dim, "self_attn.k_proj": kv_dim, "self_attn.v_proj": kv_dim}
        gate_up = {"mlp.gate_proj": spec.ffn_dim, "mlp.up_proj": spec.ffn_dim}
        out, down = {"self_attn.o_proj": spec.dim}, {"mlp.down_proj": spec.dim}
        return _Layer(
            spec=layer,
            rope=self._ropes[layer.rope],
            attn_norm=norm("input_layernorm.weight"),
            ffn_norm=norm(f"{'pre_feedforward' if spec.sandwich else 'post_attention'}_layernorm.weight"),
            attn_post_norm=vector("post_attention_layernorm.weight", spec.dim, spec.sandwich),
            ffn_post_norm=vector("post_feedforward_layernorm.weight", spec.dim, spec.sandwich),
            q_norm=vector("self_attn.q_norm.weight", spec.head_dim, spec.qk_norm),
            k_norm=vector("self_attn.k_norm.weight", spec.head_dim, spec.qk_norm),
            qkv=fused(qkv, spec.dim),
            qkv_bias=bias(qkv, spec.qkv_bias),
            o=fused(out, q_dim),
            o_bias=bias(out, spec.o_bias),
            gate_up=fused(gate_up, spec.dim),
            gate_up_bias=bias(gate_up, spec.mlp_bias),
            down=fused(down, spec.ffn_dim),
            down_bias=bias(down, spec.mlp_bias),
        )

    def forward(self, batch: Batch, kv: KVPool) -> Tensor:
        """Run every row through the model and write its keys and values to its slot.

        Returns:
            [len(out_rows), dim]: hidden states after the final norm, in ``dtype``.
        """
        if not self.dense:
            self._grow_ropes(batch.positions)
        x = self.embed(batch.tokens)
        normed = self._rms(x, self._layers[0].attn_norm)
        for index, layer in enumerate(self._layers):
            attended = self._attend(normed, layer, batch, kv.k[index], kv.v[index])
            last = index + 1 == len(self._layers)
            if last:  # after the last attention only the rows that were asked for matter
                x, attended = _gather(x, batch.out_rows), _gather(attended, batch.out_rows)
            next_norm = self._norm if last else self._layers[index + 1].attn_norm
            normed = self._feed_forward(x, attended, layer, next_norm)
        return normed

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first layer gets for token ids int64 [T]: [T, dim], scaled where the model asks.

        Raises:
            IndexError: an id is not in the vocabulary.
        """
        if not self.dense:  # else ``place`` did, while they were on the host
            self._check_tokens(tokens)
        x = _gather(self._embedding, tokens)
        if self.dense:
            return x.mul_(self.spec.embed_scale) if self.spec.embed_scale != 1.0 else x
        if self.spec.embed_scale != 1.0:
            np.multiply(x.numpy(), np.float32(self.spec.embed_scale), out=x.numpy())
        return x

    def _check_tokens(self, tokens: Tensor) -> None:
        ids = tokens.numpy()
        if ids.min() < 0 or ids.max() >= self.spec.vocab_size:  # numpy would count from the end
            raise IndexError(f"token id {ids.min()} or {ids.max()} is outside 0..{self.spec.vocab_size - 1}")

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, in ``dtype`` [R, vocabulary], from hidden states [R, dim] of ``forward``."""
        if self._head is None:
            raise RuntimeError("this decoder was built without its output matrix (lm_head=False)")
        scores = ops.linear(hidden, self._head, backend=self.backend)
        cap = self.spec.final_softcap
        # In place: R x vocabulary floats can be hundreds of megabytes.
        return scores.div_(cap).tanh_().mul_(cap) if cap else scores

    def logprobs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """log p of the token that follows each row, float32 [R], from hidden states [R, dim] and int32 ids [R]."""
        parts = zip(hidden.split(LOGIT_ROWS), tokens.split(LOGIT_ROWS), strict=True)
        found = [ops.token_logprobs(self.logits(rows), ids, backend=self.backend) for rows, ids in parts]
        return join_rows(found) if found else torch.empty(0)

    def _grow_ropes(self, positions: Tensor) -> None:
        needed = int(positions.max()) + 1
        for table in self._ropes.values():
            table.grow(needed)

    def _attend(self, normed: Tensor, layer: _Layer, batch: Batch, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one layer before its output projection, [T, heads * head_dim]."""
        spec = self.spec
        qkv = ops.linear(normed, layer.qkv, bias=layer.qkv_bias, backend=self.backend)
        queries = ops.rope_write_kv(
            qkv,
            batch.positions,
            batch.slots,
            layer.rope.cos,
            layer.rope.sin,
            k,
            v,
            n_heads=spec.n_heads,
            n_kv_heads=spec.n_kv_heads,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=spec.eps,
            norm_offset=spec.norm_offset,
            backend=self.backend,
        )
        attended = ops.tree_attention(
            queries,
            k,
            v,
            batch.plan,
            scale=spec.attn_scale,
            softcap=spec.attn_softcap,
            window=layer.spec.window,
            backend=self.backend,
        )
        return attended.view(-1, spec.n_heads * spec.head_dim)

    def _feed_forward(self, x: Tensor, attended: Tensor, layer: _Layer, next_norm: Tensor) -> Tensor:
        """The rest of a layer. Adds to the residual ``x`` in place; returns it normed for the next layer."""
        out = ops.linear(attended, layer.o, bias=layer.o_bias, backend=self.backend)
        if layer.attn_post_norm is not None:
            out = self._rms(out, layer.attn_post_norm)
        normed = self._add_rms(x, out, layer.ffn_norm)
        gate_up = ops.linear(normed, layer.gate_up, bias=layer.gate_up_bias, backend=self.backend)
        inner = ops.gated_act(gate_up, act=self.spec.act, backend=self.backend)
        out = ops.linear(inner, layer.down, bias=layer.down_bias, backend=self.backend)
        if layer.ffn_post_norm is not None:
            out = self._rms(out, layer.ffn_post_norm)
        return self._add_rms(x, out, next_norm)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return ops.rms_norm(x, weight, eps=self.spec.eps, offset=self.spec.norm_offset, backend=self.backend)

    def _add_rms(self, residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        spec = self.spec
        return ops.add_rms_norm(
            residual, x, weight, eps=spec.eps, offset=spec.norm_offset, backend=self.backend
        )


def _gather(matrix: Tensor | ops.Linear, rows: Tensor) -> Tensor:
    """``matrix[rows]``."""
    if isinstance(matrix, ops.PackedLinear):
        return matrix.rows(rows)
    return take_rows(matrix.tensor if isinstance(matrix, ops.DenseLinear) else matrix, rows)


def _rope_tables(spec: ModelSpec, weights: Weights, device: torch.device) -> dict[Rope, RopeTable]:
    """One table per distinct rope."""
    factors = (
        weights.tensor("rope_freqs.weight", spec.head_dim // 2) if "rope_freqs.weight" in weights else None
    )
    return {
        rope: RopeTable(rope, spec.head_dim, None if rope.kind == "none" else factors, device)
        for rope in {layer.rope for layer in spec.layers}
    }
