"""Scores of steps, and the best of each group of them.

Knows nothing of models, trees or engines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wcse import _core
from wcse.kernels import reference
from wcse.kernels.ops.common import F32, I32, Backend, address, check, pick, triton_ops
from wcse.kernels.ops.linear import Linear, packed_weight
from wcse.kernels.packed import PackedLinear
from wcse.types import PathScores, WcseError

F64 = torch.float64
WIDTH = len(PathScores._fields)


def native_layer(
    weight: PackedLinear, bias: Tensor | None
) -> tuple[int, int, int, bool, bool, bool, int, int, int]:
    """A weight and its bias as the native code takes them."""
    form = (weight.bits, weight.group, weight.wide, weight.minima, weight.integer)
    return weight.panels.data_ptr(), *form, address(bias), weight.n, weight.k


def score_steps(
    hidden: Tensor,
    rows: Tensor,
    layers: Sequence[tuple[Linear, Tensor | None]],
    *,
    known: Tensor | None = None,
    above: Tensor | None = None,
    bounded: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """Scores of steps from the hidden states at their ends, summed up along their paths; no logits over a vocabulary.

    Step j reads ``hidden[rows[j]]``, after the final norm, which the decoder fuses with its last residual sum. The
    layers follow with ReLU between them; z is the difference (second minus first) of two outputs, or the single one.

    Args:
        hidden: [R, D] float32.
        rows: int32 [S].
        layers: (weight [out, in], bias [out] or None); the last has one or two outputs.
        known: [K, 5] float64, the ``PathScores`` of paths that go on; None: there are none.
        above: int32 [S], where the path of each step comes from: a row of ``known``, K + j for an earlier step j,
            or -1 for none. None: every step is the first of its path. On a device it is not checked.
        bounded: the score is sigmoid(z), which for two outputs is softmax(z)[1]; otherwise z itself.

    Returns:
        float64 [S, 5], the ``PathScores`` up to each step, whose first column is its score, a float32 number.
        Its bits do not depend on the steps of other paths.

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
    if known is None:
        known = torch.empty((0, WIDTH), dtype=F64, device=hidden.device)
    if above is None:
        above = torch.full_like(rows, -1)
    kind = pick(backend, hidden)
    if kind == "triton":
        return triton_ops().score_steps(hidden, rows, layers, known, above, bounded=bounded)
    if kind == "torch":
        dense = [(weight.weight().to(hidden.dtype), bias) for weight, bias in layers]
        scores = reference.score_steps(hidden, rows, dense, bounded=bounded)
        return reference.path_scores(scores, known, above)
    check("hidden", hidden, F32, (n_rows, layers[0][0].k))
    check("rows", rows, I32, (steps,))
    check("known", known, F64, (len(known), WIDTH))
    check("above", above, I32, (steps,))
    for weight, bias in layers:
        if bias is not None:
            check("bias", bias, F32, (weight.n,))
    out = torch.empty((steps, WIDTH), dtype=F64)
    try:
        _core.score_steps(
            hidden.data_ptr(),
            rows.data_ptr(),
            [native_layer(packed_weight(weight), bias) for weight, bias in layers],
            known.data_ptr(),
            above.data_ptr(),
            out.data_ptr(),
            n_rows,
            len(known),
            steps,
            bounded,
            torch.get_num_threads(),
        )
    except ValueError as error:  # a place out of range
        raise WcseError(str(error)) from None
    return out


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

    Raises:
        WcseError: a number or (on the CPU) a bound is out of range.
    """
    if k < 1 or not 1 <= largest_group <= 65536:
        raise WcseError(f"k={k}, largest_group={largest_group}; expected at least 1, and 1 to 65536")
    kind = pick(backend, scores)
    if kind == "triton":
        return triton_ops().group_top_k(scores, bounds, k, largest_group=largest_group)
    if kind == "torch":
        return reference.group_top_k(scores, bounds, k)
    groups = len(bounds) - 1
    check("scores", scores, F32, (len(scores),))
    check("bounds", bounds, I32, (groups + 1,))
    out = torch.empty((groups, k), dtype=torch.int32)
    try:
        _core.group_top_k(scores.data_ptr(), bounds.data_ptr(), out.data_ptr(), len(scores), groups, k)
    except ValueError as error:  # bounds that do not fit
        raise WcseError(str(error)) from None
    return out
