"""Scores of steps, summed up along their paths, and the best of each group of paths.

Knows nothing of models, trees or engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
NOBODY = (-math.inf, math.inf)
"""The (value, order) of a place that nobody has."""


@dataclass(frozen=True)
class Groups:
    """Groups of candidates, a problem's or a subtree's, with the best of each so far; steps are entered as they come.

    A group's best are those with the largest aggregate, NaN last, and of equals those of smaller ``order``. So what is
    in ``best`` in the end does not depend on which step came in which call.

    Attributes:
        best: float64 [P, 2], (aggregate, order) of the places of each group in turn, best first; ``NOBODY`` where
            there are fewer. It is updated in place.
        bounds: int32 [groups + 1]; group g has the places ``best[bounds[g]:bounds[g + 1]]``.
        how: int32 [groups]; what its paths are ranked by: the place in ``votes.AGGREGATIONS``.
        group: int32 [S]; the group that each step is a candidate of; -1: none.
        order: float64 [S]; whole numbers, different in a group.
    """

    best: Tensor
    bounds: Tensor
    how: Tensor
    group: Tensor
    order: Tensor

    @classmethod
    def none(cls, steps: int, device: torch.device) -> Groups:
        """For steps that are nobody's candidates."""
        empty = torch.empty((0, 2), dtype=F64, device=device)
        bounds, how = (torch.zeros(n, dtype=torch.int32, device=device) for n in (1, 0))
        group = torch.full((steps,), -1, dtype=torch.int32, device=device)
        return cls(empty, bounds, how, group, torch.zeros(steps, dtype=F64, device=device))

    def native(self, steps: int) -> tuple[int, int, int, int, int, int, int]:
        """As the native code takes it, checked."""
        count, places = len(self.how), len(self.best)
        check("best", self.best, F64, (places, 2))
        check("bounds", self.bounds, I32, (count + 1,))
        check("how", self.how, I32, (count,))
        check("group", self.group, I32, (steps,))
        check("order", self.order, F64, (steps,))
        parts = (self.group, self.order, self.bounds, self.how, self.best)
        g, o, b, h, p = (part.data_ptr() for part in parts)
        return g, o, b, h, p, count, places


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
    groups: Groups | None = None,
    bounded: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """Scores of steps from the hidden states at their ends, sums along their paths, and the best paths of each group.

    No logits over a vocabulary.

    Step j reads ``hidden[rows[j]]``, after the final norm, which the decoder fuses with its last residual sum. The
    layers follow with ReLU between them; z is the difference (second minus first) of two outputs, or the single one.

    Args:
        hidden: [R, D] float32.
        rows: int32 [S].
        layers: (weight [out, in], bias [out] or None); the last has one or two outputs.
        known: [K, 5] float64, the ``PathScores`` of paths that go on; None: there are none.
        above: int32 [S], where the path of each step comes from: a row of ``known``, K + j for an earlier step j,
            or -1 for none. None: every step is the first of its path. On a device it is not checked.
        groups: what the paths are candidates of; its ``best`` is updated. None: of nothing.
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
    groups = groups or Groups.none(steps, hidden.device)
    kind = pick(backend, hidden)
    if kind == "triton":
        return triton_ops().score_steps(hidden, rows, layers, known, above, groups, bounded=bounded)
    if kind == "torch":
        dense = [(weight.weight().to(hidden.dtype), bias) for weight, bias in layers]
        scores = reference.score_steps(hidden, rows, dense, bounded=bounded)
        paths = reference.path_scores(scores, known, above)
        reference.enter_groups(paths, groups)
        return paths
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
            groups.native(steps),
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
