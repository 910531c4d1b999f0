"""Heads that turn a hidden state into a step's score. Knows nothing of models, formats or search.

Only the rows at step ends ever reach a head, and a head has one or two outputs: no logits over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from wcse.kernels import ops
from wcse.reward.contests import Contests
from wcse.types import Node, PathScores, WcseError


@dataclass(frozen=True)
class Head:
    """Linear layers with ReLU between them, then a link to a probability, or none.

    Args:
        layers: (weight [out, in], bias [out] or None) of each linear layer, fp32. The last one has two outputs
            (bad, good), read as softmax, or a single one, read as sigmoid.
        bounded: False leaves out the link: the score is the log-odds of two outputs, or the single output.
    """

    layers: Sequence[tuple[torch.Tensor, torch.Tensor | None]]
    bounded: bool = True
    _packed: list[tuple[ops.Linear, torch.Tensor | None]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        packed = [(ops.pack_linear(w) if w.is_cpu else ops.DenseLinear(w), b) for w, b in self.layers]
        object.__setattr__(self, "_packed", packed)

    def __call__(self, hidden: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Scores [rows] of hidden states [*, hidden size] after the final norm; ``rows`` None: of all of them.

        Two outputs z0, z1 give softmax(z)[1] = sigmoid(z1 - z0), which never underflows to a wrong rank. A score
        does not depend on its batch.
        """
        index = _places(range(len(hidden)) if rows is None else rows, hidden)
        return ops.score_steps(hidden, index, self._packed, bounded=self.bounded)[:, 0].float()

    def score_nodes(self, hidden: torch.Tensor, nodes: Sequence[Node], rows: Sequence[int]) -> list[float]:
        """Scores of the steps that end at these rows of ``hidden``.

        The nodes keep the sums along their paths, and are entered in their contests.
        """
        known = [PathScores()] * len(nodes)
        above = list(range(len(nodes)))
        summed: dict[Node, int] = {}
        for i, node in enumerate(nodes):
            assert node.parent is not None
            if node.parent in summed:
                above[i] = len(nodes) + summed[node.parent]
            else:
                try:
                    known[i] = node.parent.path_scores
                except WcseError:  # a step above is scored later; the node will add it up when it is asked
                    continue
            summed[node] = i
        contests = Contests(list(summed))
        groups = contests.groups(nodes, hidden.device)
        paths = ops.score_steps(
            hidden,
            _places(rows, hidden),
            self._packed,
            known=torch.tensor(known, dtype=torch.float64)
            .reshape(-1, len(PathScores._fields))
            .to(hidden.device),
            above=_places(above, hidden),
            groups=groups,
            bounded=self.bounded,
        ).tolist()
        for node, i in summed.items():
            node.summed = PathScores(*paths[i])
        if groups is not None:
            contests.settle(groups)
        return [path[0] for path in paths]

    def to(self, device: torch.device) -> Head:
        """The head with its layers on a device."""
        layers = [(w.to(device), None if b is None else b.to(device)) for w, b in self.layers]
        return Head(layers, self.bounded)


def _places(numbers: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(numbers), dtype=torch.int32).to(like.device)


ANY_HEAD = (("score.0", "score.2"), ("score",), ("classifier",), ("v_head.summary",))


def head_from_tensors(
    tensors: Mapping[str, torch.Tensor],
    hidden_size: int,
    *,
    source: str,
    names: Sequence[Sequence[str]] = ANY_HEAD,
    outputs: int = 0,
    bounded: bool = True,
) -> Head:
    """The head among a checkpoint's extra tensors.

    Args:
        tensors: all tensors outside the decoder, by name.
        hidden_size: what the first layer reads.
        source: the model, for messages.
        names: the linear layers to look for, several spellings.
        outputs: what the last layer must have; 0: one or two.
        bounded: as in ``Head``.

    Raises:
        WcseError: no such head, or one whose sizes do not fit.
    """
    for spelling in names:
        if all(f"{name}.weight" in tensors for name in spelling):
            layers = [(tensors[f"{n}.weight"].float(), _bias(tensors, n)) for n in spelling]
            break
    else:
        wanted = " or ".join(" with ".join(f"{n}.weight" for n in spelling) for spelling in names)
        raise WcseError(
            f"prm={source!r}: no classification head among its tensors ({', '.join(sorted(tensors)) or 'none'}); "
            f"give a model with {wanted}, or the prm_family that fits this one"
        )
    size = hidden_size
    for weight, _ in layers:
        if weight.dim() != 2 or weight.shape[1] != size:
            raise WcseError(f"prm={source!r}: head weight is {tuple(weight.shape)}, expected [*, {size}]")
        size = weight.shape[0]
    if size not in ((outputs,) if outputs else (1, 2)):
        raise WcseError(
            f"prm={source!r}: its head has {size} outputs and {outputs or '1 or 2'} are needed (is this a causal "
            "model, a general classifier, or another prm_family?)"
        )
    return Head(layers, bounded)


def _bias(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
    bias = tensors.get(f"{name}.bias")
    return None if bias is None else bias.float()
