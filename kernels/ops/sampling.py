"""Draws from logits, and the log-probability of a token.

Knows nothing of models, trees or engines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wcse import _core
from wcse.kernels import reference
from wcse.kernels.ops.common import F32, I32, Backend, check, native, pick, triton_ops
from wcse.types import WcseError


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
    kind = pick(backend, logits)
    if kind == "triton":
        return triton_ops().sample(logits, rows, temperature, top_k, top_p, min_p, keys, counters)
    if kind == "torch":
        return reference.sample(logits, rows, temperature, top_k, top_p, min_p, keys, counters)
    check("logits", logits, F32, (n_rows, vocab))
    check("rows", rows, I32, draws)
    check("temperature", temperature, F32, draws)
    check("top_k", top_k, I32, draws)
    check("top_p", top_p, F32, draws)
    check("min_p", min_p, F32, draws)
    check("keys", keys, keys.dtype, draws)
    check("counters", counters, I32, draws)
    tokens = torch.empty(draws, dtype=I32)
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
    if not native(backend, logits):
        wide = logits if logits.dtype is torch.float64 else logits.float()
        return reference.token_logprobs(wide, tokens.to(logits.device))
    check("logits", logits, F32, (rows, vocab))
    check("tokens", tokens, I32, (rows,))
    out = torch.empty(rows)
    try:
        _core.token_logprobs(
            logits.data_ptr(), tokens.data_ptr(), out.data_ptr(), rows, vocab, torch.get_num_threads()
        )
    except ValueError as error:  # a token out of range
        raise WcseError(str(error)) from None
    return out
