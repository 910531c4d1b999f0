"""One decoder for every architecture: a ``ModelSpec`` says which parts of the Llama block are switched on.

``forward`` runs a batch of rows (new tokens) against paged keys and values and returns hidden states;
``logits`` is a separate call, so that a verifier never pays for the vocabulary. Each row's result depends on
its own path only, not on the rows beside it. Knows nothing of requests, sampling, page allocation, files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wcse.kernels import ops
from wcse.kernels.copies import join_rows, take_rows
from wcse.models.kv_pool import KVPool
from wcse.models.rope import rope_tables
from wcse.models.spec import LayerSpec, ModelSpec
from wcse.models.weights import Weights
from wcse.types import Quantization, WcseError

LOGIT_ROWS = (
    128  # rows of logits held at once: with all of a batch a wide vocabulary takes hundreds of megabytes
)


@dataclass(frozen=True, slots=True)
class Batch:
    """T rows, in the row order of ``plan`` (``wcse._core.plan``)."""

    tokens: Tensor  # int64 [T]
    positions: Tensor  # int32 [T], absolute
    slots: Tensor  # int32 [T], where the row's keys and values go: page * 16 + offset
    plan: Any  # wcse._core.Plan, or what ops.device_plan made of it
    out_rows: Tensor  # int64 [O], the rows whose hidden state is wanted, in the order wanted


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
        kv_dtype: torch.dtype | None = None,
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
                for they cost most accuracy. "gguf": in the codes of the file, which gives the bits of None. "w8a8",
                "w4a8", "gguf_a8": these three, and the inputs of every matrix are rounded to 8 bits as well. On a
                device there is "fp8" alone: e4m3 with a factor for each output; embedding and output matrix stay.
            kv_dtype: of keys and values; None takes float32 on the CPU, which also knows float16, and ``dtype``
                elsewhere, where there is float8_e4m3fn too.

        Raises:
            WcseError: a tensor is missing or has another shape than the spec says.
        """
        self.spec = spec
        self.backend = backend
        self.device = torch.device(device)
        self.dense = self.device.type != "cpu" or backend == "triton"
        self.dtype = dtype if self.dense else torch.float32
        if self.dense and quantization not in (None, "fp8"):
            raise WcseError(f"quantization={quantization!r} is for the CPU; on {self.device} there is 'fp8'")
        if not self.dense and "fp8" in (quantization, "fp8" if kv_dtype is ops.FP8 else None):
            raise WcseError(
                "fp8 weights, keys and values need a GPU; leave quantization and kv_cache_dtype out"
            )
        self.quantization = quantization
        self.kv_dtype = kv_dtype or self.dtype
        if self.kv_dtype not in ((self.dtype, ops.FP8) if self.dense else (torch.float32, torch.float16)):
            raise WcseError(f"keys and values in {kv_dtype} are not supported on {self.device}")
        self._head: ops.Linear | None = None
        if lm_head:
            name = "embed_tokens" if spec.tied else "lm_head"
            self._head = self._vocabulary(f"{name}.weight", weights)
        self._embedding = self._read_embedding(weights)
        tables = rope_tables(spec, weights, self.device)
        self._ropes = list(tables.values())
        places = {rope: i for i, rope in enumerate(tables)}
        layers = [self._read_layer(i, la, places[la.rope], weights) for i, la in enumerate(spec.layers)]
        norm = weights.tensor("norm.weight", spec.dim).to(self.device, torch.float32)
        self._stack = ops.Stack(layers, norm, _shape(spec))

    def _pack(
        self, weights: Weights, parts: dict[str, int], columns: int, quantization: Quantization | None
    ) -> ops.Linear:
        """Matrices [rows, columns] below one another, packed; ``parts`` maps their names to their rows."""
        if quantization in ("gguf", "gguf_a8"):
            stored = [weights.quantized(name, size, columns) for name, size in parts.items()]
            codes = [part for part in stored if part is not None]
            if len(codes) == len(stored):
                return ops.pack_quantized(ops.stack(codes), integer=quantization == "gguf_a8")
        rows = [weights.tensor(name, size, columns) for name, size in parts.items()]
        matrix = rows[0] if len(rows) == 1 else torch.cat(rows)
        if self.dense and quantization == "fp8":
            return ops.Fp8Linear.of(matrix.to(self.device))
        if self.dense:
            return ops.DenseLinear(matrix.to(self.device, self.dtype))
        kept = quantization in (None, "gguf", "gguf_a8")  # a file's floats stay floats
        return ops.pack_linear(matrix, "fp32" if kept else quantization)

    def pool(self, num_pages: int, memory: Tensor | None = None) -> KVPool:
        """Keys and values for this decoder, in ``memory`` where it is given; see ``KVPool``."""
        device = self.device if self.dense else None
        return KVPool(self.spec, num_pages, device=device, dtype=self.kv_dtype, memory=memory)

    @property
    def rope_rows(self) -> int:
        """Rows of the longest rope table; it changes when tables are replaced by longer ones."""
        return max(len(table.cos) for table in self._ropes)

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
        self.check_tokens(batch.tokens)
        self._grow_ropes(batch.positions)
        parts = (batch.tokens, batch.positions, batch.slots)
        if not upload:
            return Batch(*parts, plan, batch.out_rows)
        tokens, positions, slots = (x.to(self.device, non_blocking=True) for x in parts)
        return Batch(tokens, positions, slots, plan, batch.out_rows.to(self.device, non_blocking=True))

    def _vocabulary(self, name: str, weights: Weights) -> ops.Linear:
        """The matrix of one row per token; never of 4 bits, nor of floats of 8."""
        finer: dict[Quantization | None, Quantization | None] = {"int4": "int8", "w4a8": "w8a8", "fp8": None}
        how = finer.get(self.quantization, self.quantization)
        return self._pack(weights, {name: self.spec.vocab_size}, self.spec.dim, how)

    def _read_embedding(self, weights: Weights) -> Tensor | ops.Linear:
        spec, name = self.spec, "embed_tokens.weight"
        # A tied embedding is read out of the packed output matrix: a second copy may be a quarter of the model.
        if spec.tied and self._head:
            return self._head
        if self.quantization not in (None, "fp8"):
            return self._vocabulary(name, weights)
        return weights.tensor(name, spec.vocab_size, spec.dim).to(self.device, self.dtype)

    @property
    def weight_bytes(self) -> int:
        """Memory of the matrices; norms and biases are small beside them."""
        matrices = [matrix for layer in self._stack.layers for matrix, _ in layer.matrices()]
        if self._head is not None:
            matrices.append(self._head)
        total = sum(matrix.nbytes for matrix in matrices)
        return total if self._embedding is self._head else total + self._embedding.nbytes

    def _read_layer(self, index: int, layer: LayerSpec, rope: int, weights: Weights) -> ops.Layer:
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
        return ops.Layer(
            window=layer.window,
            rope=rope,
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
        step = ops.Step(
            x=self.embed(batch.tokens),
            positions=batch.positions,
            slots=batch.slots,
            plan=batch.plan,
            ropes=[(table.cos, table.sin) for table in self._ropes],
            k_pages=kv.k,
            v_pages=kv.v,
            out_rows=batch.out_rows,
        )
        return ops.decoder_layers(self._stack, step, backend=self.backend)

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first layer gets for token ids int64 [T]: [T, dim], scaled where the model asks.

        Raises:
            IndexError: an id is not in the vocabulary.
        """
        if not self.dense:  # else ``place`` did, while they were on the host
            self.check_tokens(tokens)
        x = _gather(self._embedding, tokens)
        if self.dense:
            return x.mul_(self.spec.embed_scale) if self.spec.embed_scale != 1.0 else x
        if self.spec.embed_scale != 1.0:
            np.multiply(x.numpy(), np.float32(self.spec.embed_scale), out=x.numpy())
        return x

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises IndexError where one of the ids, on the host, is not in the vocabulary."""
        ids = tokens.numpy()
        if ids.min() < 0 or ids.max() >= self.spec.vocab_size:  # numpy would count from the end
            raise IndexError(f"token id {ids.min()} or {ids.max()} is outside 0..{self.spec.vocab_size - 1}")

    def score_memory(self) -> Tensor | None:
        """Memory for the scores of LOGIT_ROWS rows, for ``logits`` to use again and again; None: it takes none."""
        if self.dense or self.backend not in ("auto", "cpp"):
            return None
        return torch.empty(LOGIT_ROWS, self.spec.vocab_size)

    def logits(self, hidden: Tensor, memory: Tensor | None = None) -> Tensor:
        """Scores of every token, in ``dtype`` [R, vocabulary], from hidden states [R, dim] of ``forward``.

        Args:
            hidden: the states.
            memory: from ``score_memory``, for at most LOGIT_ROWS rows: the scores lie there. Mapping new memory at
                every step costs as much as a tenth of their product.
        """
        if self._head is None:
            raise RuntimeError("this decoder was built without its output matrix (lm_head=False)")
        out = None if memory is None else memory[: len(hidden)]
        scores = ops.linear(hidden, self._head, out=out, backend=self.backend)
        cap = self.spec.final_softcap
        return scores.div_(cap).tanh_().mul_(cap) if cap else scores

    def logprobs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """log p of the token that follows each row, float32 [R], from hidden states [R, dim] and int32 ids [R]."""
        memory = self.score_memory()
        parts = zip(hidden.split(LOGIT_ROWS), tokens.split(LOGIT_ROWS), strict=True)
        found = [
            ops.token_logprobs(self.logits(rows, memory), ids, backend=self.backend) for rows, ids in parts
        ]
        return join_rows(found) if found else torch.empty(0)

    def _grow_ropes(self, positions: Tensor) -> None:
        needed = int(positions.numpy().max()) + 1
        for table in self._ropes:
            table.grow(needed)


def _shape(spec: ModelSpec) -> ops.Shape:
    """What the ops that run the layers need of a spec."""
    return ops.Shape(
        dim=spec.dim,
        n_heads=spec.n_heads,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        act=spec.act,
        eps=spec.eps,
        norm_offset=spec.norm_offset,
        scale=spec.attn_scale,
        softcap=spec.attn_softcap,
    )


def _gather(matrix: Tensor | ops.Linear, rows: Tensor) -> Tensor:
    """``matrix[rows]``."""
    if isinstance(matrix, ops.PackedLinear):
        return matrix.rows(rows)
    return take_rows(matrix.tensor if isinstance(matrix, ops.DenseLinear) else matrix, rows)
