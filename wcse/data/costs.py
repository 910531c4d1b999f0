"""What a tree would have cost without sharing, and where its tokens went. From a record alone.

"Unique" counts every token of the tree once, "apart" what independent sequences would have computed: each leaf
with its whole path and its own copy of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from wcse.data.record import NodeRecord, Path, SolveRecord
from wcse.types import LOOKAHEAD, PROBE


@dataclass(frozen=True, slots=True)
class TreeCosts:
    """Tokens of one tree; they add up over records.

    Attributes:
        unique: the prompt and every step, once.
        apart: every leaf's path with the prompt.
        kept: steps on the way to a returned solution.
        lookahead: rollouts that only judged a step.
        difficulty: samples that only measured the problem.
        pruned: every other step.
        read_once: what an incremental verifier reads, at least; 0 where nothing was scored.
        reread: what a verifier reads that starts over for every step.
    """

    unique: int = 0
    apart: int = 0
    kept: int = 0
    lookahead: int = 0
    difficulty: int = 0
    pruned: int = 0
    read_once: int = 0
    reread: int = 0

    def __add__(self, other: TreeCosts) -> TreeCosts:
        return TreeCosts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def sharing(self) -> float:
        """Tokens apart per unique token; 1 when nothing is shared."""
        return self.apart / self.unique if self.unique else 1.0

    @property
    def rescoring(self) -> float:
        """Tokens that a verifier without memory reads per token that one with a memory reads."""
        return self.reread / self.read_once if self.read_once else 1.0


def readers(record: SolveRecord, reread: int) -> int:
    """How many models of the verifier read each token; 0 for a head on the policy's own states.

    For each step a model computes its tokens or finds them, and finds its prefix; the prompt it has computed besides.
    So computed and reused tokens make ``reread`` (of the record's ``TreeCosts``) and the prompt for each model, however
    many texts were equal. The verifier's own template and cut of the text make somewhat more of it.
    """
    ledger, read = record.ledger, record.prompt_tokens + reread
    if not ledger.prm_computed or not read:
        return 0
    return max(1, round((ledger.prm_computed - ledger.prm_asked + ledger.prm_reused) / read))


def roles(record: SolveRecord) -> dict[Path, str]:
    """What each step was for: kept, lookahead, difficulty or pruned."""
    kept = {s.path[:depth] for s in record.solutions for depth in range(1, len(s.path) + 1)}

    def role(path: Path) -> str:
        if path in kept:
            return "kept"
        if LOOKAHEAD in path:
            return "lookahead"
        return "difficulty" if path[0] >= PROBE else "pruned"

    return {node.path: role(node.path) for node in record.nodes}


def tree_costs(record: SolveRecord) -> TreeCosts:
    """The costs of a record's tree."""
    nodes = sorted(record.nodes, key=lambda node: len(node.path))
    ends: dict[Path, int] = {(): record.prompt_tokens}
    for node in nodes:
        ends[node.path] = ends.get(node.path[:-1], record.prompt_tokens) + len(node.token_ids)
    parents = {node.path[:-1] for node in nodes}
    role = roles(record)

    def tokens(name: str) -> int:
        return sum(len(node.token_ids) for node in nodes if role[node.path] == name)

    scored = [node for node in nodes if _scored(node)]
    return TreeCosts(
        unique=record.prompt_tokens + sum(len(node.token_ids) for node in nodes),
        apart=sum(ends[node.path] for node in nodes if node.path not in parents),
        kept=tokens("kept"),
        lookahead=tokens("lookahead"),
        difficulty=tokens("difficulty"),
        pruned=tokens("pruned"),
        read_once=record.prompt_tokens + sum(len(node.token_ids) for node in scored) if scored else 0,
        reread=sum(ends[node.path] for node in scored),
    )


def _scored(node: NodeRecord) -> bool:
    return node.score is not None
