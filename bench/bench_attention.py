"""Tree attention beside torch SDPA, one layer: leaves below a shared prompt, and a long prompt.

Peer of the leaves: SDPA on packed GQA (the query heads of a group as rows of their kv head), the best arrangement
by hand, with every sequence's keys and values already gathered; gathering is not charged. It reads the shared
tokens once per leaf, the tree kernel once per tile of rows. Floor: 4 FLOPs per score and head element at the
measured FMA peak.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timing import versus

from wcse import _core
from wcse.kernels import ops

Q_HEADS, KV_HEADS, HEAD_DIM = 14, 2, 64
BLOCK = 64


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest, benchmark: Any) -> Any:
    if benchmark.disabled and request.param > 1:
        pytest.skip("one thread is enough without timing")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def chain(tree: _core.KVTree, tokens: int) -> int:
    """The last of a chain of sealed 64-token nodes that hold a prompt."""
    node = 0
    for begin in range(0, tokens, BLOCK):
        node = tree.fork(node)
        tree.extend(node, list(range(min(BLOCK, tokens - begin))))
        tree.seal(node)
    return node


def gathered(pool: torch.Tensor, tree: _core.KVTree, leaf: int, transposed: bool) -> torch.Tensor:
    """[Hkv, tokens, d] of a leaf's path."""
    parts = []
    node = leaf
    while node:
        pages = pool[torch.from_numpy(tree.pages(node)).long()]  # [pages, Hkv, d, 16] or [pages, Hkv, 16, d]
        rows = (pages.transpose(2, 3) if transposed else pages).transpose(0, 1).flatten(1, 2)
        parts.append(rows[:, : tree.length(node)])
        node = tree.parent(node)
    return torch.cat(parts[::-1], dim=1)


@pytest.mark.parametrize("leaves", [64, 256])
def test_leaves_below_a_prompt(benchmark: Any, leaves: int, threads: int) -> None:
    shared, private = 512, 64
    torch.manual_seed(0)
    pages = (shared + leaves * private) // 16
    tree = _core.KVTree(pages)
    prompt = chain(tree, shared)
    nodes = []
    for _ in range(leaves):
        nodes.append(tree.fork(prompt))
        tree.extend(nodes[-1], list(range(private)))
    plan = _core.plan(tree, nodes, [1] * leaves)
    k, v = torch.randn(pages, KV_HEADS, HEAD_DIM, 16), torch.randn(pages, KV_HEADS, 16, HEAD_DIM)
    q = torch.randn(leaves, Q_HEADS, HEAD_DIM)
    # Row i of the plan is leaf order[i]; the leaves were made in depth-first order.
    packed = q.view(leaves, KV_HEADS, Q_HEADS // KV_HEADS, HEAD_DIM)
    keys = torch.stack([gathered(k, tree, leaf, True) for leaf in nodes])
    values = torch.stack([gathered(v, tree, leaf, False) for leaf in nodes])

    def ours() -> torch.Tensor:
        return ops.tree_attention(q, k, v, plan, scale=HEAD_DIM**-0.5)

    def sdpa() -> torch.Tensor:
        return F.scaled_dot_product_attention(packed, keys, values)

    with torch.inference_mode():
        torch.testing.assert_close(ours(), sdpa().flatten(1, 2), rtol=1e-4, atol=1e-5)
        flops = 4.0 * leaves * (shared + private) * Q_HEADS * HEAD_DIM
        versus(benchmark, ours, sdpa, flops=flops, bytes=k.nbytes + v.nbytes + 2.0 * q.nbytes)


def test_long_prompt(benchmark: Any, threads: int) -> None:
    tokens = 1024
    torch.manual_seed(0)
    tree = _core.KVTree(tokens // 16)
    last = chain(tree, tokens)
    path = [last]
    while tree.parent(path[-1]):
        path.append(tree.parent(path[-1]))
    plan = _core.plan(tree, path, [tree.length(node) for node in path])
    k, v = (
        torch.randn(tokens // 16, KV_HEADS, HEAD_DIM, 16),
        torch.randn(tokens // 16, KV_HEADS, 16, HEAD_DIM),
    )
    q = torch.randn(tokens, Q_HEADS, HEAD_DIM)
    group = Q_HEADS // KV_HEADS
    keys = gathered(k, tree, last, True).repeat_interleave(group, 0)[None]
    values = gathered(v, tree, last, False).repeat_interleave(group, 0)[None]
    heads_first = q.transpose(0, 1).contiguous()[None]

    def ours() -> torch.Tensor:
        return ops.tree_attention(q, k, v, plan, scale=HEAD_DIM**-0.5)

    def sdpa() -> torch.Tensor:
        return F.scaled_dot_product_attention(heads_first, keys, values, is_causal=True)

    with torch.inference_mode():
        torch.testing.assert_close(ours(), sdpa()[0].transpose(0, 1), rtol=1e-4, atol=1e-5)
        flops = 2.0 * tokens * (tokens + 1) * Q_HEADS * HEAD_DIM
        versus(benchmark, ours, sdpa, flops=flops, bytes=k.nbytes + v.nbytes + 2.0 * q.nbytes)
