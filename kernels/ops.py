"""One checked function per kernel: ``from wcse.kernels import ops``.

Each op takes ``backend``: "cpp" (the native kernel: float32 tensors on the CPU), "triton" (``triton/``: float32,
float16 or bfloat16 on a GPU), "torch" (``reference.py``: any float dtype and device), or "auto" ("cpp" for tensors
on the CPU, else "triton", or "torch" where Triton is not installed or has no kernel for the op). Tensors reach the
kernels as addresses, so everything that could make an address wrong is checked here: dtype, shape, device, strides.
The native loops use as many threads as torch does at the time of the call; their results do not depend on it.

Common sizes: T rows (new tokens), Hq query heads, Hkv key/value heads, d head size, P pages of 16 tokens.
Knows nothing of models, trees or engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from wcse import _core
from wcse.kernels import reference
from wcse.kernels.dense import DenseLinear
from wcse.kernels.packed import (
    Format,
    PackedLinear,
    QuantizedWeight,
    pack_linear,
    pack_quantized,
    quantize,
    stack,
)
from wcse.kernels.reference import PAGE
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.kernels.triton.work import DevicePlan

Backend = Literal["auto", "cpp", "triton", "torch"]
Activation = Literal["silu", "gelu_tanh"]

__all__ = [
    "PAGE",
    "DenseLinear",
    "Format",
    "Linear",
    "PackedLinear",
    "QuantizedWeight",
    "add_rms_norm",
    "device_plan",
    "gated_act",
    "group_top_k",
    "linear",
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

_F32 = torch.float32
_I32 = torch.int32


def _pick(backend: Backend, x: Tensor) -> Literal["cpp", "triton", "torch"]:
    """The backend that shall run, decided from the first tensor."""
    if backend == "auto":
        return "cpp" if x.is_cpu else "torch" if _no_triton(x) else "triton"
    if backend not in ("cpp", "triton", "torch"):
        raise WcseError(f"backend={backend!r} is unknown; use 'auto', 'cpp', 'triton' or 'torch'")
    if backend == "triton" and (why := _no_triton(x)):
        raise WcseError(f"backend='triton' cannot run: {why}")
    return backend


def _native(backend: Backend, x: Tensor) -> bool:
    """Whether the native kernel shall run, for ops that have no Triton kernel."""
    return _pick(backend, x) == "cpp"


def _no_triton(x: Tensor) -> str:
    """Why Triton cannot work on ``x``; empty if it can."""
    try:
        import triton
    except ImportError:
        return "triton is not installed; pip install 'wcse[gpu]'"
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        return f"the tensor is on {x.device}; use a CUDA device (or, to test, TRITON_INTERPRET=1)"
    return ""


def _triton() -> Any:
    """The Triton ops; imported late, because Triton takes seconds and is not everywhere."""
    from wcse.kernels.triton import checked

    return checked


def _check(name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a tensor whose address may not go to the native code."""
    if x.dtype is dtype and x.shape == shape and x.is_contiguous() and x.is_cpu:
        return
    if tuple(x.shape) != shape:
        raise WcseError(f"{name} has shape {tuple(x.shape)}; expected {shape}")
    if x.dtype is not dtype:
        raise WcseError(f"{name} has dtype {x.dtype}; the native kernel takes {dtype}: convert with .to()")
    if not x.is_cpu:
        raise WcseError(f"{name} is on {x.device}; the native kernel runs on the CPU: use backend='torch'")
    raise WcseError(f"{name} is not contiguous (strides {x.stride()}): pass {name}.contiguous()")


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape:
        raise WcseError(f"{name} has shape {tuple(x.shape)}; expected {shape}")


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def tree_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: _core.Plan | DevicePlan,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of every row over its own path of the tree; each shared page is read once per tile of rows.

    Args:
        q: [T, Hq, d] queries, rows in the order of ``plan``; d a multiple of 8 from 8 to 256.
        k_pages: [P, Hkv, d, 16] keys, transposed inside a page. Query head h reads head h // (Hq // Hkv). For
            Triton a transposed view of keys stored as [P, Hkv, 16, d].
        v_pages: [P, Hkv, 16, d] values. For Triton keys and values must be finite everywhere in the pools.
        plan: the plan of this step; for Triton best one that ``device_plan`` made, once for all layers.
        scale: factor of the scores, usually d ** -0.5.
        softcap: scores become softcap * tanh(score / softcap); 0 turns it off.
        window: a row at position p sees keys at positions > p - window; 0 turns it off.

    Returns:
        [T, Hq, d]. Native: a row's bits do not depend on the other rows, nor on threads. Triton: the same call gives
        the same bits; another batch may round differently. float32 sums; float32 queries use no TF32.

    Raises:
        WcseError: a tensor, the plan or an option does not fit.
    """
    n_rows, n_heads, head_dim = q.shape
    n_pages, n_kv = k_pages.shape[:2]
    _check_shape("k_pages", k_pages, (n_pages, n_kv, head_dim, PAGE))
    _check_shape("v_pages", v_pages, (n_pages, n_kv, PAGE, head_dim))
    if n_rows != plan.n_rows:
        raise WcseError(f"q has {n_rows} rows but the plan has {plan.n_rows}; pass the plan of this step")
    if n_kv == 0 or n_heads % n_kv:
        raise WcseError(f"q has {n_heads} heads; expected a multiple of the {n_kv} heads of k_pages")
    if softcap < 0 or window < 0:
        raise WcseError(f"softcap={softcap}, window={window}: must not be negative; 0 turns them off")
    kind = _pick(backend, q)
    if kind == "triton":
        return _triton().tree_attention(
            q, k_pages, v_pages, plan, scale=scale, softcap=softcap, window=window
        )
    plan = plan if isinstance(plan, _core.Plan) else plan.plan
    if kind == "torch":
        return reference.tree_attention(
            q, k_pages, v_pages, plan, scale=scale, softcap=softcap, window=window
        )
    if head_dim % 8 or not 8 <= head_dim <= 256:
        raise WcseError(f"q has head size {head_dim}; the native kernel takes multiples of 8 up to 256")
    _check("q", q, _F32, (n_rows, n_heads, head_dim))
    _check("k_pages", k_pages, _F32, (n_pages, n_kv, head_dim, PAGE))
    _check("v_pages", v_pages, _F32, (n_pages, n_kv, PAGE, head_dim))
    out = torch.empty_like(q)
    try:
        _core.tree_attention(
            plan,
            q.data_ptr(),
            k_pages.data_ptr(),
            v_pages.data_ptr(),
            out.data_ptr(),
            n_heads,
            n_kv,
            head_dim,
            n_pages,
            scale,
            softcap,
            window,
            torch.get_num_threads(),
        )
    except ValueError as error:  # the plan reads pages that the pool does not have
        raise WcseError(str(error)) from None
    return out


def device_plan(
    plan: _core.Plan,
    device: torch.device,
    *,
    n_heads: int,
    n_kv: int,
    head_dim: int,
    dtype: torch.dtype,
) -> DevicePlan:
    """A plan with its work lists in device memory, for Triton; made once a step and passed to every layer."""
    from wcse.kernels.triton.work import DevicePlan, device_rates

    return DevicePlan(plan, device, n_heads // n_kv, n_kv, head_dim, dtype, rates=device_rates(device))


def rope_write_kv(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    n_heads: int,
    n_kv_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Split fused QKV, normalise heads (optional), rotate, and write K and V to their slots in the pools.

    Args:
        qkv: [T, (Hq + 2 Hkv) * d]: query heads, then key heads, then value heads.
        positions: int32 [T], absolute; rows of ``cos`` and ``sin``.
        slots: int32 [T], page * 16 + offset; distinct.
        cos, sin: [Pmax, d / 2], half-split (Hugging Face) rotary tables.
        k_pages, v_pages: pools, written in place; see ``tree_attention``.
        q_norm, k_norm: [d] RMS-norm weights applied per head before the rotation; ``eps`` and ``norm_offset``
            as in ``rms_norm``.

    Returns:
        [T, Hq, d] rotated queries. A key or value that is not finite is stored as 0, so that it can spoil its
        own row only and never a neighbour that shares the page.

    Raises:
        WcseError: a tensor does not fit, or a position or slot lies outside the tables or pools (Triton does not
            look at their values: that would stop the device; a negative slot writes nothing there).
    """
    n_rows, width = qkv.shape
    n_all = n_heads + 2 * n_kv_heads
    if n_heads < 1 or n_kv_heads < 1 or width % n_all or width // n_all % 2:
        raise WcseError(
            f"qkv has {width} columns; expected ({n_heads} + 2 * {n_kv_heads}) heads of even size"
        )
    head_dim = width // n_all
    n_pages = k_pages.shape[0]
    k_shape = (n_pages, n_kv_heads, head_dim, PAGE)
    v_shape = (n_pages, n_kv_heads, PAGE, head_dim)
    kind = _pick(backend, qkv)
    if kind != "cpp":
        _check_shape("k_pages", k_pages, k_shape)
        _check_shape("v_pages", v_pages, v_shape)
        run = _triton().rope_write_kv if kind == "triton" else reference.rope_write_kv
        return run(
            qkv,
            positions,
            slots,
            cos,
            sin,
            k_pages,
            v_pages,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=eps,
            norm_offset=norm_offset,
        )
    if head_dim > 256:
        raise WcseError(f"qkv has heads of size {head_dim}; the native kernel takes up to 256")
    table = (cos.shape[0], head_dim // 2)
    _check("qkv", qkv, _F32, (n_rows, width))
    _check("positions", positions, _I32, (n_rows,))
    _check("slots", slots, _I32, (n_rows,))
    _check("cos", cos, _F32, table)
    _check("sin", sin, _F32, table)
    _check("k_pages", k_pages, _F32, k_shape)
    _check("v_pages", v_pages, _F32, v_shape)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            _check(name, weight, _F32, (head_dim,))
    q = torch.empty((n_rows, n_heads, head_dim))
    try:
        _core.rope_write_kv(
            qkv.data_ptr(),
            positions.data_ptr(),
            slots.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            _address(q_norm),
            _address(k_norm),
            q.data_ptr(),
            k_pages.data_ptr(),
            v_pages.data_ptr(),
            n_rows,
            n_heads,
            n_kv_heads,
            head_dim,
            table[0],
            n_pages,
            eps,
            norm_offset,
            torch.get_num_threads(),
        )
    except ValueError as error:  # a position or slot out of range; nothing was written
        raise WcseError(str(error)) from None
    return q


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0, backend: Backend = "auto"
) -> Tensor:
    """``x * rsqrt(mean(x^2) + eps) * (weight + offset)``; x [T, D], weight [D], result [T, D]."""
    kind = _pick(backend, x)
    if kind == "triton":
        return _triton().rms_norm(x, None, weight, eps=eps, offset=offset)
    if kind == "torch":
        return reference.rms_norm(x, weight, eps=eps, offset=offset)
    n_rows, width = x.shape
    _check("x", x, _F32, (n_rows, width))
    _check("weight", weight, _F32, (width,))
    out = torch.empty_like(x)
    _core.rms_norm(
        x.data_ptr(),
        0,
        weight.data_ptr(),
        out.data_ptr(),
        n_rows,
        width,
        eps,
        offset,
        torch.get_num_threads(),
    )
    return out


def add_rms_norm(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    eps: float,
    offset: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """``residual += x`` in place, then ``rms_norm(residual)``; residual and x [T, D], weight [D]."""
    kind = _pick(backend, residual)
    if kind == "triton":
        return _triton().rms_norm(x, residual, weight, eps=eps, offset=offset)
    if kind == "torch":
        return reference.add_rms_norm(residual, x, weight, eps=eps, offset=offset)
    n_rows, width = residual.shape
    _check("residual", residual, _F32, (n_rows, width))
    _check("x", x, _F32, (n_rows, width))
    _check("weight", weight, _F32, (width,))
    out = torch.empty_like(x)
    _core.rms_norm(
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        n_rows,
        width,
        eps,
        offset,
        torch.get_num_threads(),
    )
    return out


def gated_act(gate_up: Tensor, act: Activation = "silu", *, backend: Backend = "auto") -> Tensor:
    """``act(gate_up[:, :F]) * gate_up[:, F:]``; gate_up [T, 2F], result [T, F]; act "silu" or "gelu_tanh"."""
    if act not in ("silu", "gelu_tanh"):
        raise WcseError(f"act={act!r} is unknown; use 'silu' or 'gelu_tanh'")
    n_rows, width = gate_up.shape
    if width % 2:
        raise WcseError(f"gate_up has {width} columns; expected an even number")
    kind = _pick(backend, gate_up)
    if kind == "triton":
        return _triton().gated_act(gate_up, act=act)
    if kind == "torch":
        return reference.gated_act(gate_up, act=act)
    _check("gate_up", gate_up, _F32, (n_rows, width))
    out = torch.empty((n_rows, width // 2))
    _core.gated_act(
        gate_up.data_ptr(), out.data_ptr(), n_rows, width // 2, act == "gelu_tanh", torch.get_num_threads()
    )
    return out


Linear = PackedLinear | DenseLinear


def _packed(weight: Linear) -> PackedLinear:
    if isinstance(weight, DenseLinear):
        raise WcseError("the weight is a DenseLinear; the native kernel takes one from pack_linear")
    return weight


def linear(
    x: Tensor,
    packed: Linear,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """``x @ weight.T + bias + residual``.

    Args:
        x: [T, K].
        packed: the weight [N, K], from ``pack_linear`` or ``pack_quantized``, or a ``DenseLinear`` for the other
            backends. Quantised weights count as the floats that ``packed.weight()`` gives; the result has the bits
            that those would give.
        bias: [N] or None.
        residual: [T, N] or None.

    Returns:
        [T, N]. The sums run over K in one fixed order, so a row's bits do not depend on T, on its place, or on
        the number of threads. Activations and sums are float32 for every format.

    Raises:
        WcseError: a tensor does not fit the weight.
    """
    n_rows, k = x.shape
    n = packed.n
    if k != packed.k:
        raise WcseError(f"x has {k} columns; the weight takes {packed.k}")
    if not _native(backend, x):
        return reference.linear(x, packed.weight().to(x.dtype), bias, residual)
    packed = _packed(packed)
    _check("x", x, _F32, (n_rows, k))
    if bias is not None:
        _check("bias", bias, _F32, (n,))
    if residual is not None:
        _check("residual", residual, _F32, (n_rows, n))
    out = torch.empty((n_rows, n))
    _core.linear(
        x.data_ptr(),
        packed.panels.data_ptr(),
        packed.bits,
        packed.group,
        packed.wide,
        packed.minima,
        _address(bias),
        _address(residual),
        out.data_ptr(),
        n_rows,
        n,
        k,
        torch.get_num_threads(),
    )
    return out


def sample(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    counters: Tensor,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Draw tokens. Draw j reads ``logits[rows[j]]``; several draws may read one row.

    Order of the filters: temperature, min-p, top-k, top-p; lower ids count first among equal logits. The number
    u comes from Philox4x32-10 with key ``keys[j]`` and counter ``(counters[j], 0, 0, 0)`` (first word >> 8,
    times 2^-24); the token is the first id, in id order, whose share of the kept probability exceeds u.

    Args:
        logits: [R, V] float32.
        rows: int32 [D].
        temperature: float32 [D]; 0 takes the largest logit, the lowest id among equals.
        top_k: int32 [D]; 0 or -1 turns it off.
        top_p: float32 [D] in (0, 1]; 1 turns it off.
        min_p: float32 [D] in [0, 1]; 0 turns it off.
        keys: int64 or uint64 [D]; the 64 bits are the key.
        counters: int32 [D].

    Returns:
        tokens int32 [D] and logprobs float32 [D], the log-softmax of the raw logits at the token. A row with a
        NaN or +inf, or with nothing but -inf, gives token -1 and logprob NaN.

    Raises:
        WcseError: a tensor does not fit or a parameter is out of range; no token is drawn. (Triton looks at the
            parameters only while they are on the CPU; it takes them there or on the device of the logits, which
            may be of any of its dtypes.)
    """
    n_rows, vocab = logits.shape
    draws = (rows.shape[0],)
    if keys.dtype not in (torch.int64, torch.uint64):
        raise WcseError(f"keys has dtype {keys.dtype}; expected int64 or uint64")
    kind = _pick(backend, logits)
    if kind == "triton":
        return _triton().sample(logits, rows, temperature, top_k, top_p, min_p, keys, counters)
    if kind == "torch":
        return reference.sample(logits, rows, temperature, top_k, top_p, min_p, keys, counters)
    _check("logits", logits, _F32, (n_rows, vocab))
    _check("rows", rows, _I32, draws)
    _check("temperature", temperature, _F32, draws)
    _check("top_k", top_k, _I32, draws)
    _check("top_p", top_p, _F32, draws)
    _check("min_p", min_p, _F32, draws)
    _check("keys", keys, keys.dtype, draws)
    _check("counters", counters, _I32, draws)
    tokens = torch.empty(draws, dtype=_I32)
    logprobs = torch.empty(draws)
    try:
        _core.sample(
            logits.data_ptr(),
            rows.data_ptr(),
            temperature.data_ptr(),
            top_k.data_ptr(),
            top_p.data_ptr(),
            min_p.data_ptr(),
            keys.data_ptr(),
            counters.data_ptr(),
            tokens.data_ptr(),
            logprobs.data_ptr(),
            n_rows,
            vocab,
            draws[0],
            torch.get_num_threads(),
        )
    except ValueError as error:  # a row or parameter out of range
        raise WcseError(str(error)) from None
    return tokens, logprobs


def group_top_k(
    scores: Tensor, bounds: Tensor, k: int, *, largest_group: int, backend: Backend = "auto"
) -> Tensor:
    """The best k of every group of scores: what survives of each problem (beam) or subtree (DVTS).

    Args:
        scores: float32 [S]; NaN ranks last.
        bounds: int32 [groups + 1]; group g is ``scores[bounds[g]:bounds[g + 1]]``.
        k: how many of each.
        largest_group: at least the size of the largest, at most 65536 (so that a device need not be asked).

    Returns:
        int32 [groups, k]: places in ``scores``, best first, lower places first among equals; -1 where a group has
        fewer than k.
    """
    if k < 1 or not 1 <= largest_group <= 65536:
        raise WcseError(f"k={k}, largest_group={largest_group}; expected at least 1, and 1 to 65536")
    if _pick(backend, scores) != "triton":
        return reference.group_top_k(scores, bounds, k)
    return _triton().group_top_k(scores, bounds, k, largest_group=largest_group)


def token_logprobs(logits: Tensor, tokens: Tensor, *, backend: Backend = "auto") -> Tensor:
    """The log-softmax of each row of logits at one token.

    Args:
        logits: [R, V] float32.
        tokens: int32 [R].

    Returns:
        float32 [R]; NaN for a row with a NaN or +inf, or with nothing but -inf.

    Raises:
        WcseError: a tensor does not fit or a token is not in the vocabulary.
    """
    rows, vocab = logits.shape
    if not _native(backend, logits):
        wide = logits if logits.dtype is torch.float64 else logits.float()
        return reference.token_logprobs(wide, tokens.to(logits.device))
    _check("logits", logits, _F32, (rows, vocab))
    _check("tokens", tokens, _I32, (rows,))
    out = torch.empty(rows)
    try:
        _core.token_logprobs(
            logits.data_ptr(), tokens.data_ptr(), out.data_ptr(), rows, vocab, torch.get_num_threads()
        )
    except ValueError as error:  # a token out of range
        raise WcseError(str(error)) from None
    return out


def _layer(weight: PackedLinear, bias: Tensor | None) -> tuple[int, int, int, bool, bool, int, int, int]:
    address = weight.panels.data_ptr()
    form = (weight.bits, weight.group, weight.wide, weight.minima)
    return address, *form, _address(bias), weight.n, weight.k


def score_steps(
    hidden: Tensor,
    rows: Tensor,
    layers: Sequence[tuple[Linear, Tensor | None]],
    *,
    bounded: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """Scores of steps from the hidden states at their ends; no logits over a vocabulary.

    Step j reads ``hidden[rows[j]]``, after the final norm, which the decoder fuses with its last residual sum. The
    layers follow with ReLU between them; z is the difference (second minus first) of two outputs, or the single one.

    Args:
        hidden: [R, D] float32.
        rows: int32 [S].
        layers: (weight [out, in], bias [out] or None); the last has one or two outputs.
        bounded: the score is sigmoid(z), which for two outputs is softmax(z)[1]; otherwise z itself.

    Returns:
        float32 [S]. A score's bits do not depend on the other steps.

    Raises:
        WcseError: a tensor does not fit, or a row is out of range.
    """
    n_rows, width = hidden.shape
    steps = rows.shape[0]
    for i, (weight, _) in enumerate(layers):
        if weight.k != width:
            raise WcseError(
                f"layer {i} takes {weight.k} columns and gets {width}; pass the head of this model"
            )
        width = weight.n
    if not layers or width not in (1, 2):
        raise WcseError(f"the head has {width} outputs; expected 1 or 2")
    kind = _pick(backend, hidden)
    if kind == "triton":
        return _triton().score_steps(hidden, rows, layers, bounded=bounded)
    if kind == "torch":
        dense = [(weight.weight().to(hidden.dtype), bias) for weight, bias in layers]
        return reference.score_steps(hidden, rows, dense, bounded=bounded)
    _check("hidden", hidden, _F32, (n_rows, layers[0][0].k))
    _check("rows", rows, _I32, (steps,))
    for weight, bias in layers:
        if bias is not None:
            _check("bias", bias, _F32, (weight.n,))
    scores = torch.empty(steps)
    try:
        _core.score_steps(
            hidden.data_ptr(),
            rows.data_ptr(),
            [_layer(_packed(weight), bias) for weight, bias in layers],
            scores.data_ptr(),
            n_rows,
            steps,
            bounded,
            torch.get_num_threads(),
        )
    except ValueError as error:  # a row out of range
        raise WcseError(str(error)) from None
    return scores
