"""The decoder against transformers on small random models of every architecture: logits and greedy tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from wcse import _core
from wcse.models.decoder import Batch, Decoder
from wcse.models.hf import open_hf, read_json
from wcse.models.kv_pool import KVPool
from wcse.models.rope import RopeTable
from wcse.models.spec import Rope, spec_from_hf
from wcse.models.weights import Weights
from wcse.types import WcseError

Folders = Callable[[str], Path]
CHUNK = 64
VOCAB = 384
TOLERANCE = 1e-4  # largest error over largest logit


class Tree:
    """A decoder over a KV tree that checks itself; spans go in as (node, tokens)."""

    def __init__(self, decoder: Decoder, pages: int = 96) -> None:
        self.decoder = decoder
        self.tree = _core.KVTree(pages, debug=True)
        self.pool = KVPool(decoder.spec, pages)

    def run(
        self, spans: Sequence[tuple[int, Sequence[int]]], *, last_only: bool = False
    ) -> list[torch.Tensor]:
        """Append the tokens to their nodes in one batch; logits [tokens, V] (or [1, V]) of each span."""
        slots = [self.tree.extend(node, np.asarray(tokens, np.int32)) for node, tokens in spans]
        counts = np.array([len(tokens) for _, tokens in spans], np.int32)
        plan = _core.plan(self.tree, np.array([node for node, _ in spans], np.int32), counts)
        rows = [np.arange(start, start + n) for start, n in zip(plan.row_start, counts, strict=True)]
        order = np.argsort(np.concatenate(rows))
        batch = Batch(
            tokens=torch.tensor(np.concatenate([tokens for _, tokens in spans])[order]),
            positions=torch.tensor(plan.positions),
            slots=torch.tensor(np.concatenate(slots)[order]),
            plan=plan,
            out_rows=torch.tensor(np.concatenate([row[-1:] if last_only else row for row in rows])),
        )
        logits = self.decoder.logits(self.decoder.forward(batch, self.pool))
        self.tree.settle()
        return list(logits.split([1 if last_only else int(n) for n in counts]))

    def prompt(self, tokens: Sequence[int], parent: int = 0) -> tuple[int, torch.Tensor]:
        """Store a prompt as a chain of sealed nodes of 64 tokens; the last node and all logits."""
        parts = []
        for begin in range(0, len(tokens), CHUNK):
            parent = self.tree.fork(parent)
            parts += self.run([(parent, tokens[begin : begin + CHUNK])])
            self.tree.seal(parent)
        return parent, torch.cat(parts)


def random_tokens(seed: int, count: int) -> list[int]:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """transformers' OpenMP regions stall for a second each on a machine with more work than cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    @cache
    def build(variant: str) -> Path:
        return tiny_models.build(variant, tmp_path_factory.mktemp(variant))

    return build


def ours(folder: Path, **options: object) -> Decoder:
    return Decoder(spec_from_hf(read_json(folder / "config.json")), open_hf(folder), **options)


def theirs(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)


@torch.inference_mode()
def their_logits(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([list(tokens)])).logits[0]


@pytest.mark.parametrize("variant", tiny_models.VARIANTS)
def test_logits_of_a_prompt_in_one_piece_and_in_chunks(folder: Folders, variant: str) -> None:
    path, tokens = folder(variant), random_tokens(1, 150)
    want = their_logits(theirs(path), tokens)
    decoder = ours(path)
    _, chunked = Tree(decoder).prompt(tokens)
    tree = Tree(decoder)
    (whole,) = tree.run([(tree.tree.fork(0), tokens)])
    assert relative_error(chunked, want) < TOLERANCE
    assert relative_error(whole, want) < TOLERANCE
    assert torch.equal(chunked.argmax(-1), want.argmax(-1))


@pytest.mark.parametrize("variant", tiny_models.VARIANTS)
def test_greedy_tokens_over_a_tree_of_branches(folder: Folders, variant: str) -> None:
    """64 steps of 5 leaves: four below one prompt, two of those below a shared step, and one of another prompt."""
    path = folder(variant)
    tree = Tree(ours(path))
    prompts = [random_tokens(2, 70), random_tokens(3, 9)]
    roots = [tree.prompt(prompt)[0] for prompt in prompts]
    step = random_tokens(4, 21)
    shared, _ = tree.prompt(step, roots[0])
    parents = [roots[0], roots[0], shared, shared, roots[1]]
    prefixes = [prompts[0], prompts[0], prompts[0] + step, prompts[0] + step, prompts[1]]
    leaves = [tree.tree.fork(parent) for parent in parents]
    starts = [random_tokens(10 + i, 1 + 4 * i) for i in range(len(leaves))]
    written = [list(start) for start in starts]
    new = starts
    for _ in range(64):
        logits = tree.run(list(zip(leaves, new, strict=True)), last_only=True)
        new = [[int(row.argmax())] for row in logits]
        for tokens, token in zip(written, new, strict=True):
            tokens += token
    assert len({token for tokens in written for token in tokens}) > 24, "it repeats itself: a weak test"
    reference = theirs(path)
    for prefix, start, tokens in zip(prefixes, starts, written, strict=True):
        # Every token is the argmax given ours before it, so by induction transformers would write the same.
        argmax = their_logits(reference, prefix + tokens).argmax(-1).tolist()
        begin = len(prefix) + len(start)
        assert tokens[len(start) :] == argmax[begin - 1 : -1]


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_threads(folder: Folders, variant: str) -> None:
    decoder, prompt = ours(folder(variant)), random_tokens(5, 80)
    continuations = [random_tokens(20 + i, 3 + i) for i in range(6)]
    together = Tree(decoder)
    root, _ = together.prompt(prompt)
    batch = together.run([(together.tree.fork(root), tokens) for tokens in continuations])
    torch.set_num_threads(3)
    for tokens, logits in zip(continuations, batch, strict=True):
        alone = Tree(decoder)
        root, _ = alone.prompt(prompt)
        leaf = alone.tree.fork(root)
        rows = [alone.run([(leaf, [token])])[0] for token in tokens]
        assert torch.equal(torch.cat(rows), logits)


def test_the_torch_backend_agrees(folder: Folders) -> None:
    path, tokens = folder("gemma2"), random_tokens(6, 70)
    _, native = Tree(ours(path)).prompt(tokens)
    _, plain = Tree(ours(path, backend="torch")).prompt(tokens)
    assert relative_error(native, plain) < TOLERANCE


def test_out_rows_choose_and_order(folder: Folders) -> None:
    tree = Tree(ours(folder("qwen3")))
    spans = [(tree.tree.fork(0), random_tokens(7, 5)), (tree.tree.fork(0), random_tokens(8, 9))]
    last = tree.run(spans, last_only=True)
    again = Tree(tree.decoder)
    every = again.run([(again.tree.fork(0), tokens) for _, tokens in spans])
    for one, rows in zip(last, every, strict=True):
        assert torch.equal(one[0], rows[-1])


def test_no_rows_may_be_wanted(folder: Folders) -> None:
    """A prompt's earlier blocks are run for their keys and values only."""
    decoder = ours(folder("llama"))
    tree, pool = _core.KVTree(8), KVPool(decoder.spec, 8)
    node = tree.fork(0)
    slots = torch.tensor(tree.extend(node, np.array([1, 2, 3], np.int32)))
    plan = _core.plan(tree, np.array([node], np.int32), np.array([3], np.int32))
    batch = Batch(torch.tensor([1, 2, 3]), torch.tensor(plan.positions), slots, plan, torch.tensor([]).long())
    assert decoder.logits(decoder.forward(batch, pool)).shape == (0, VOCAB)
    assert pool.v[-1][:, :, :3].any()


def test_half_precision_files_are_widened(folder: Folders, tmp_path: Path) -> None:
    path = tiny_models.build("llama", tmp_path, dtype=torch.float16)
    tokens = random_tokens(9, 40)
    _, logits = Tree(ours(path)).prompt(tokens)
    assert logits.dtype == torch.float32
    assert relative_error(logits, their_logits(theirs(path), tokens)) < TOLERANCE


def test_a_verifier_needs_no_output_matrix(folder: Folders) -> None:
    path = folder("llama")
    whole = open_hf(path)
    body = Weights.of(
        {name: whole.tensor(name) for name in whole.names() if name != "lm_head.weight"}, "body"
    )
    spec = spec_from_hf(read_json(path / "config.json"))
    decoder = Decoder(spec, body, lm_head=False)
    with pytest.raises(RuntimeError, match="without its output matrix"):
        decoder.logits(torch.zeros(1, spec.dim))
    with pytest.raises(WcseError, match=r"body: tensor lm_head\.weight is missing"):
        Decoder(spec, body)


@pytest.mark.parametrize("variant", ["llama", "gemma2"])  # gemma2 is tied: read out of the packed matrix
def test_embeddings_are_those_of_the_checkpoint(folder: Folders, variant: str) -> None:
    decoder = ours(folder(variant))
    tokens = torch.tensor(random_tokens(11, 50))
    want = open_hf(folder(variant)).tensor("embed_tokens.weight")[tokens] * decoder.spec.embed_scale
    assert torch.equal(decoder.embed(tokens), want)
    for bad in (-1, VOCAB):
        with pytest.raises(IndexError, match="is outside 0"):
            decoder.embed(torch.tensor([3, bad]))


def test_page_bytes_count_the_pool(folder: Folders) -> None:
    spec = spec_from_hf(read_json(folder("gemma3") / "config.json"))
    pool = KVPool(spec, 5)
    stored = sum(pages.numel() * pages.element_size() for pages in (*pool.k, *pool.v))
    assert stored == 5 * pool.bytes_per_page == 5 * KVPool.page_bytes(spec)
    assert all(pages.data_ptr() % 64 == 0 and not pages.any() for pages in (*pool.k, *pool.v))


def test_rope_tables_keep_their_bits_when_they_grow() -> None:
    table = RopeTable(Rope(theta=1e6), 32)
    table.grow(3)
    before = table.cos.clone()
    table.grow(len(before) + 1)
    assert len(table.cos) > len(before)
    assert torch.equal(table.cos[: len(before)], before)
    with_factors = RopeTable(Rope(theta=1e6), 32, torch.full((16,), 2.0))
    with_factors.grow(8)
    assert torch.equal(with_factors.cos[2], table.cos[1])
