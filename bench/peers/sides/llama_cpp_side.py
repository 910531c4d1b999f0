"""llama.cpp through the low-level API of llama-cpp-python: sequences of one batch that share the prompt by ``seq_cp``.

The cache is one stream for every sequence (``streams``: attention reads a sequence's own tokens, shared ones are
copied) or unified (``unified``: shared tokens are stored once, attention scans all that is stored behind a mask). The
weights are the file's own, or made from them by llama.cpp's quantiser. The verifier is the same file loaded a second
time; a score is read from two columns of the logits after a step, as PRMs that are language models do. Sampling is
llama.cpp's own (temperature, top-p, draw), a chain for each thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
from side import Count, Facts, Item, Stopwatch, drive, serve

FILE_TYPES = {
    "q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
    "f16": llama.LLAMA_FTYPE_MOSTLY_F16,
    "f32": llama.LLAMA_FTYPE_ALL_F32,
}
BATCH, UBATCH = 2048, 512  # tokens handed over at once, and computed at once
MODES = ["unified", "streams"]
GOOD, BAD = 10, 11  # columns of the logits that stand for the verdict


class LlamaCppSide:
    """One model for the policy, one for the verifier, and contexts of the size that the item needs."""

    def load(self, model: dict[str, str], precision: str, threads: int, workloads: Sequence[str]) -> Facts:
        source = Path(model["path"])
        if source.suffix != ".gguf":
            raise ValueError(f"{source} is not a .gguf file")
        path = source if precision == "file" else quantised(source, Path(model["cache"]), precision, threads)
        self.threads = threads
        llama.llama_backend_init()
        self.policy = open_model(path)
        self.verifier = open_model(path) if "score" in workloads else None
        self.layout: Layout | None = None
        self.beams: SeqBeams | None = None
        return {
            "versions": {"llama-cpp-python": version("llama-cpp-python"), "numpy": np.__version__},
            "dtype": precision if precision != "file" else f"{source.stem.split('.')[-1]}",
            "system": llama.llama_print_system_info().decode().strip(),
            "modes": {"sample": MODES, "search": MODES, "score": MODES},
        }

    def prepare(self, item: Item) -> None:
        """Contexts that hold the item's tokens, and logits of every beam."""
        layout = Layout.of(item, self.threads)
        if self.beams is None or layout != self.layout:
            if self.beams is not None:
                self.beams.close()
            verifier = self.verifier if item.workload == "score" else None
            self.beams = SeqBeams(self.policy, verifier, layout)
            self.layout = layout
        self.beams.sampler(item)

    def run(self, item: Item) -> Count:
        assert self.beams is not None
        count = drive(item, self.beams)
        return Count(count.tokens, count.extra | self.beams.clock.seconds)


@dataclass(frozen=True)
class Layout:
    """What a context is made for. ``tokens`` that are stored at one time, of all sequences or of each (``unified``)."""

    tokens: int
    sequences: int
    unified: bool
    threads: int

    @classmethod
    def of(cls, item: Item, threads: int) -> Layout:
        """Room for an item, one token more for each step of a beam (the verifier's separator)."""
        if item.mode != "unified":
            return cls(item.longest + item.steps + 1, item.n, False, threads)
        step = item.step_tokens + 1
        search = item.n * step + item.keep * (item.steps - 1) * step
        tail = item.n * (item.new_tokens + 1) if item.workload == "sample" else search
        return cls(len(item.prompt) + tail, item.n, True, threads)


def quantised(source: Path, cache: Path, precision: str, threads: int) -> Path:
    """The file's weights in another precision, made once.

    Raises:
        RuntimeError: llama.cpp does not convert the file.
    """
    target = cache / f"{precision}.gguf"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        params = llama.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.allow_requantize = FILE_TYPES[precision], threads, True
        if llama.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama_model_quantize does not make {precision} of {source}")
        part.rename(target)
    return target


def open_model(path: Path) -> Any:
    """A loaded model.

    Raises:
        RuntimeError: the file cannot be loaded.
    """
    params = llama.llama_model_default_params()
    params.load_mode = llama.LLAMA_LOAD_MODE_NONE  # its memory is its own, as that of the other sides is
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    if model is None:
        raise RuntimeError(f"llama.cpp does not load {path}")
    return model


class Context:
    """A llama.cpp context with one batch that is filled again and again."""

    def __init__(self, model: Any, layout: Layout) -> None:
        params = llama.llama_context_default_params()
        each = (layout.tokens + 255) // 256 * 256
        params.n_ctx = each if layout.unified else each * layout.sequences
        params.n_seq_max, params.kv_unified = layout.sequences, layout.unified
        params.n_batch, params.n_ubatch = BATCH, UBATCH
        params.n_threads = params.n_threads_batch = layout.threads
        params.no_perf = True
        self.handle = llama.llama_init_from_model(model, params)
        if self.handle is None:
            raise RuntimeError(
                f"llama.cpp makes no context of {params.n_ctx} tokens and {layout.sequences} sequences"
            )
        self.memory = llama.llama_get_memory(self.handle)
        self.batch = llama.llama_batch_init(BATCH, 0, 1)

    def close(self) -> None:
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.handle)

    def decode(self, tokens: np.ndarray, first: int, start: int) -> None:
        """Read tokens [sequences, count], at most BATCH of them; sequence ``first + i`` gets row i from position
        ``start`` on. Logits are there for the last token of each row."""
        rows, count = tokens.shape
        batch, total = self.batch, rows * count
        fields = ((batch.token, tokens), (batch.pos, start + np.arange(count)), (batch.n_seq_id, 1))
        for pointer, values in fields:
            np.ctypeslib.as_array(pointer, (BATCH,))[:total].reshape(rows, count)[:] = values
        np.ctypeslib.as_array(batch.logits, (BATCH,))[:total].reshape(rows, count)[:] = (
            np.arange(count) == count - 1
        )
        for i in range(total):
            batch.seq_id[i][0] = first + i // count
        batch.n_tokens = total
        if status := llama.llama_decode(self.handle, batch):
            raise RuntimeError(f"llama_decode of {rows} sequences of {count} tokens gave {status}")

    def prompt(self, tokens: Sequence[int], sequences: int) -> None:
        """Forget everything, read a prompt once and share it."""
        llama.llama_memory_clear(self.memory, False)
        for begin in range(0, len(tokens), BATCH):
            self.decode(np.array([tokens[begin : begin + BATCH]]), 0, begin)
        for sequence in range(1, sequences):
            llama.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)

    def select(self, copies: Sequence[tuple[int, int]]) -> None:
        """Sequences become copies of others: (from, to) pairs."""
        for _, target in copies:
            llama.llama_memory_seq_rm(self.memory, target, -1, -1)
        for source, target in copies:
            llama.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def logits(self, row: int, columns: Sequence[int]) -> list[float]:
        """Logits after the token at ``row`` of the last batch."""
        values = llama.llama_get_logits_ith(self.handle, row)
        return [values[column] for column in columns]


class SeqBeams:
    """Beam i is sequence i of the policy's cache, and of the verifier's."""

    def __init__(self, policy: Any, verifier: Any, layout: Layout) -> None:
        self.policy = Context(policy, layout)
        self.verifier = Context(verifier, layout) if verifier is not None else None
        self.newline = newline(verifier) if verifier is not None else 0
        self.threads = min(layout.threads, layout.sequences)
        self.pool = ThreadPoolExecutor(self.threads)
        self.chains: list[Any] = []
        self.clock = Stopwatch()

    def close(self) -> None:
        self.pool.shutdown()
        for context in (self.policy, self.verifier):
            if context is not None:
                context.close()

    def sampler(self, item: Item) -> None:
        """New chains of samplers, in the order in which the other sides apply them."""
        for chain in self.chains:
            llama.llama_sampler_free(chain)
        self.chains = [new_chain(item, part) for part in range(self.threads)]
        self.clock, self.meter = Stopwatch(), item.meter

    def start(self, prompt: list[int], n: int) -> None:
        self.n, self.length, self.read = n, len(prompt), len(prompt)
        self.given = prompt
        self.policy.prompt(prompt, n)
        self.last: np.ndarray | None = None  # sampled and not read yet
        self.opened = False  # whether the verifier has read the prompt

    def grow(self, tokens: int) -> None:
        written = np.empty((self.n, tokens), np.int32)
        for i in range(tokens):
            if self.last is not None:
                self.policy.decode(self.last[:, None], 0, self.length)
                self.length += 1
            with self.clock("sampler_seconds"):
                llama.llama_get_logits_ith(
                    self.policy.handle, -1
                )  # sorts the rows, which threads must not do
                rows = np.arange(self.n) if self.last is not None else np.full(self.n, -1)
                parts = self.pool.map(self._draw, self.chains, np.array_split(rows, len(self.chains)))
                self.last = written[:, i] = np.concatenate(list(parts))
            self.meter.add(self.n)
        self.step = written

    def _draw(self, chain: Any, rows: np.ndarray) -> np.ndarray:
        """A token after each of these rows of the last batch; ctypes lets the others go on meanwhile."""
        drawn = [llama.llama_sampler_sample(chain, self.policy.handle, int(row)) for row in rows]
        return np.array(drawn, np.int32)

    def score(self) -> list[float]:
        assert self.verifier is not None
        if not self.opened:
            self.verifier.prompt(self.given, self.n)
            self.opened = True
        pieces = np.hstack([self.step, np.full((self.n, 1), self.newline, np.int32)])
        count = pieces.shape[1]
        scores: list[float] = []
        at_once = BATCH // count
        for begin in range(0, self.n, at_once):
            part = pieces[begin : begin + at_once]
            self.verifier.decode(part, begin, self.read)
            self.meter.add(0)
            for row in range(len(part)):
                bad, good = self.verifier.logits((row + 1) * count - 1, (BAD, GOOD))
                scores.append(good - bad)
        self.read += count
        return scores

    def select(self, parents: list[int]) -> None:
        # The first child of a kept beam stays where it is; only the others are copied.
        kept = set(parents)
        free = [i for i in range(self.n) if i not in kept]
        copies, seen = [], set()
        for parent in parents:
            if parent in seen:
                copies.append((parent, free.pop()))
            seen.add(parent)
        assert self.last is not None
        for source, target in copies:
            self.last[target] = self.last[source]
        for context in (self.policy, self.verifier):
            if context is not None:
                context.select(copies)


def new_chain(item: Item, part: int) -> Any:
    """Temperature, top-p and a draw with a seed of the item's and the part's own."""
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(item.temperature))
    llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_p(item.top_p, 1))
    llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist((item.seed * 64 + part) & 0xFFFFFFFF))
    return chain


def newline(model: Any) -> int:
    """The token of a line break, the separator of steps."""
    found = (ctypes.c_int32 * 8)()
    count = llama.llama_tokenize(llama.llama_model_get_vocab(model), b"\n\n", 2, found, 8, False, False)
    if count < 1:
        raise RuntimeError("the tokenizer has no line break")
    return int(found[count - 1])


if __name__ == "__main__":
    serve(LlamaCppSide())
