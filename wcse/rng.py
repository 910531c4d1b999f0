"""Keys of the counter-based random numbers: the seed, the problem and the place in the tree, nothing else.

Token ``i`` of a node draws with Philox4x32-10, key = the node's key, counter = (i, 0, 0, 0), and takes the
first output word: ``u = (word >> 8) * 2**-24``. The drawing itself belongs to the sampler. Neither batch nor
order nor N enters, so a node's tokens are the same in every schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b


def node_key(seed: int, problem_id: str, path: Sequence[int]) -> int:
    """The 64-bit key of a node: blake2b-64 of ``seed|problem_id|i.j.k``, read as a little-endian integer."""
    name = f"{seed}|{problem_id}|{'.'.join(map(str, path))}"
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def uniforms(seed: int, problem_id: str, label: str, n: int) -> list[float]:
    """``n`` numbers in [0, 1) for a decision of a strategy, 53 bits each, from blake2b of what names them."""
    names = (f"{seed}|{problem_id}|{label}|{index}" for index in range(n))
    digests = (blake2b(name.encode(), digest_size=8).digest() for name in names)
    return [(int.from_bytes(digest, "little") >> 11) * 2.0**-53 for digest in digests]
