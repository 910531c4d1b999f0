"""N independent solutions: the sample set of best-of-N, majority and weighted best-of-N.

Sample i is child i of the root and does not depend on N, so the first N' of N solutions are the N' solutions
of a smaller run. The selectors in wcse.votes do the rest.
"""

from __future__ import annotations

from wcse.search.config import SearchConfig
from wcse.types import Expand, Node, Search


def best_of_n(root: Node, config: SearchConfig) -> Search:
    """``config.n`` solutions, each step scored once by the verifier."""
    leaves: list[Node] = yield Expand(root, config.n, to_end=True)
    return leaves


def majority(root: Node, config: SearchConfig) -> Search:
    """``config.n`` solutions without a verifier: the same samples as :func:`best_of_n`."""
    leaves: list[Node] = yield Expand(root, config.n, to_end=True, score=False)
    return leaves
