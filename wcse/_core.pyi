"""Types of the native module (``csrc/bind.cpp``, ``csrc/cpu/bind_kernels.cpp``).

Integer arguments of any integer type are taken and checked to fit int32; floats are a ``TypeError``. Every other
mistake is a ``ValueError`` that names the operation, the id and the rule, and changes nothing.
"""

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

Int32: TypeAlias = NDArray[np.int32]
Integers: TypeAlias = Sequence[int] | NDArray[np.integer]

# -- KV tree ----------------------------------------------------------------------------------------------------

class KVExhausted(MemoryError):
    """Not enough free and cached pages; nothing changed. Release nodes and try again."""

class KVStats(TypedDict):
    """Pages, but for ``nodes`` and ``tokens``: free + cached + pinned + in_flight = total."""

    total: int
    free: int
    cached: int
    pinned: int
    in_flight: int
    lent: int
    nodes: int
    tokens: int
    peak_used: int
    evicted: int

class KVTree:
    """Owner of the pages (16 tokens each) of keys and values of a forest of token spans.

    A node owns a span of token ids below its parent, and whole pages for them. Node 0 is the empty super-root.
    One owner thread. With ``debug`` every operation ends in ``check()``.

    Raises:
        ValueError: ``num_pages`` is not in [1, 134217727].
    """

    def __init__(self, num_pages: int, debug: bool = False) -> None: ...
    def fork(self, parent: int) -> int:
        """A new empty child of a sealed node. The caller holds its one reference."""
    def extend(self, node: int, tokens: Integers) -> Int32:
        """Append ``tokens`` [n] to an unsealed node, all or nothing; cached nodes are evicted if need be.

        Returns:
            Their slots int32[n]: page * 16 + offset.

        Raises:
            KVExhausted: the free and cached pages do not suffice.
        """
    def extend_rows(self, nodes: Integers, tokens: Integers) -> Int32:
        """Append ``tokens[i]`` to ``nodes[i]``, all or nothing. The nodes are distinct. Returns slots int32[R]."""
    def extend_ahead(self, nodes: Integers, n: int) -> Int32:
        """Append n tokens of id 0 to each of the nodes, which are distinct: room for what a device will draw by itself.

        All or nothing. Returns slots int32 [R * n], node by node.
        """
    def amend_rows(self, nodes: Integers, drop: Integers, counts: Integers, tokens: Integers) -> None:
        """What the device drew: the last ``drop[i]`` tokens of ``nodes[i]`` go, with the pages that they leave empty;
        the ``counts[i]`` tokens before those become the next ones of ``tokens``. All or nothing.

        Raises:
            ValueError: they are not all in flight, no token in flight would remain, or tokens are missing.
        """
    def settle(self) -> None:
        """The running step has written its keys and values: nothing is in flight any more."""
    def spare(self) -> Int32:
        """The free pages that are not lent."""
    def lend(self, pages: Integers) -> None:
        """These spare pages are not handed out from now on. They stay ``free``."""
    def take_back(self, pages: Integers) -> None:
        """These lent pages are handed out again."""
    def relocate(self, source: Integers, target: Integers) -> None:
        """Nodes own the spare pages ``target`` instead of ``source``, which become spare. The caller moves their
        contents, and forgets plans that were made before."""
    def seal(self, node: int) -> None:
        """No more tokens; from now on the node can be forked and, once settled, matched."""
    def retain(self, node: int) -> None:
        """Take one more reference."""
    def release(self, node: int) -> None:
        """Give one reference back. The last one leaves a sealed node cached and frees an unsealed one."""
    def drop(self, node: int) -> None:
        """``release``, but the last reference frees the node instead, as soon as it has no children.

        Dropped ancestors that waited for it go too. The last reference decides: nodes released stay cached.
        """
    def match_prefix(self, tokens: Integers, under: int = 0) -> tuple[int, int]:
        """The deepest chain of whole sealed, settled nodes that spells a prefix of ``tokens``, compared id by id.

        Returns:
            Its last node, retained (the super-root if nothing matches), and the number of tokens matched.
        """
    def evict(self, n_pages: int) -> int:
        """Free the cached nodes held longest ago until ``n_pages`` are freed or none is left. Returns pages freed."""
    def check(self) -> None:
        """Recount everything from scratch.

        Raises:
            RuntimeError: a law is broken; the message names it.
        """
    def alive(self, node: int) -> bool:
        """Whether the id may be used. Never raises."""
    def length(self, node: int) -> int:
        """Own tokens."""
    def depth(self, node: int) -> int:
        """Tokens on the path, own ones included."""
    def parent(self, node: int) -> int:
        """Parent id; -1 for the super-root."""
    def refs(self, node: int) -> int: ...
    def sealed(self, node: int) -> bool: ...
    def tokens(self, node: int) -> Int32:
        """Own token ids int32[length]."""
    def pages(self, node: int) -> Int32:
        """Own page ids int32[ceil(length / 16)]."""
    def stats(self) -> KVStats: ...

# -- plan -------------------------------------------------------------------------------------------------------

class PlanNodes:
    """Arrays int32[E]: one entry per tree node with tokens that some row sees, in depth-first order.

    Rows [lo, hi) lie at or below the node. Its pages are ``Plan.pages[page_begin:page_end]`` and hold ``length``
    tokens; row r sees the first min(length, seen + r - lo) of them. ``pos`` is the position of its first token.
    """

    @property
    def lo(self) -> Int32: ...
    @property
    def hi(self) -> Int32: ...
    @property
    def page_begin(self) -> Int32: ...
    @property
    def page_end(self) -> Int32: ...
    @property
    def length(self) -> Int32: ...
    @property
    def seen(self) -> Int32: ...
    @property
    def pos(self) -> Int32: ...
    def __len__(self) -> int: ...

class Plan:
    """Rows of one forward pass in depth-first order of the nodes, and the pages that each of them sees."""

    @property
    def n_rows(self) -> int: ...
    @property
    def order(self) -> Int32:
        """int32[S]: segments, by index, in depth-first order."""
    @property
    def row_start(self) -> Int32:
        """int32[S]: first row of each segment, by index."""
    @property
    def positions(self) -> Int32:
        """int32[n_rows]: absolute position of each row."""
    @property
    def pages(self) -> Int32: ...
    @property
    def nodes(self) -> PlanNodes: ...
    def advance(self, slots: Integers) -> None:
        """Go on by a token: every segment is the last token of a leaf, and its next one lies in ``slots[s]``.

        Raises:
            ValueError: it is not, or a slot does not follow the tokens before it; nothing was changed.
        """

def plan(tree: KVTree, nodes: Integers, n_new: Integers) -> Plan:
    """Plan a pass over segments: the last ``n_new[s]`` >= 1 tokens of each of the distinct ``nodes[s]``."""

# -- work list --------------------------------------------------------------------------------------------------

class WorkList:
    """A plan cut into work items for a GPU: tiles of consecutive rows times flat lists of pages."""

    @property
    def tails(self) -> Int32:
        """With ``ahead``: the entry of each row's last token; the pages that it may grow into follow it."""
    @property
    def items(self) -> Int32:
        """int32[5 n]: first row, rows, entries [begin, end), first partial slot (-1: none). Longest first."""
    @property
    def page(self) -> Int32:
        """int32[entries and padding]: page id | valid tokens << 27."""
    @property
    def rows(self) -> Int32:
        """Row e of the tile sees token t if lo <= e < hi and t < causal + e: lo | hi << 8 | (causal + 128) << 16."""
    @property
    def pos(self) -> Int32:
        """Position of the page's first token."""
    @property
    def merge(self) -> Int32:
        """int32[3 rows]: first partial slot, slots between two chunks' partials, chunks (0: nothing to merge)."""
    @property
    def slots(self) -> int:
        """Partial results in all."""
    @property
    def entries(self) -> int:
        """Pages of all lists, without padding: what a kernel reads for every head."""

def work_list(
    plan: Plan,
    *,
    tile_rows: int,
    block_pages: int,
    items: int,
    least_pages: int,
    window: int = 0,
    ahead: Integers | None = None,
) -> WorkList:
    """Cut a plan into tiles of ``tile_rows`` rows, and long page lists into chunks until there are ``items`` of them.

    Raises ValueError that names an option out of range.
    """

# -- text -------------------------------------------------------------------------------------------------------

class Automaton:
    """Follows a delimiter or stop strings through a text, byte by byte."""

    @property
    def states(self) -> int: ...

class TextMatcher:
    """Finds delimiters and stop strings in the bytes of tokens, inside one token or across several.

    ``token_bytes[t]`` are the bytes that token t adds to a text. A slot follows one text.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None: ...
    def pattern(self, delimiter: bytes, stops: Sequence[bytes]) -> int:
        """Id of a pair of delimiter (empty: none) and stop strings; the same for equal pairs.

        It is kept until ``release`` was called as often as ``pattern`` and its slots are closed.
        """
    def release(self, pattern: int) -> None: ...
    @property
    def patterns(self) -> int:
        """Pairs that are kept."""
    def open(self, pattern: int, history: bytes = b"") -> int:
        """A slot for a new text that follows ``history``, in which a stop string may begin."""
    def close(self, slot: int) -> None: ...
    def new_step(self, slot: int) -> None:
        """Begin a step: delimiters are looked for in what follows, after its first visible byte."""
    def advance(self, slots: Integers, tokens: Integers) -> NDArray[np.uint8]:
        """Append ``tokens[i]`` to the text of ``slots[i]``.

        Returns:
            uint8[R]. Bit 1: the token completed a delimiter that lies in this step and behind a visible byte (any
            but ASCII white space) of it. Bit 2: the token completed a stop string.
        """
    def automaton(self, pattern: int, bit: int) -> Automaton:
        """What finds the pattern's delimiter (bit 1) or its stop strings (bit 2)."""
    def table(self, automaton: Automaton) -> NDArray[np.uint16]:
        """[states, tokens]: the next state, and 1 << 15 if the token completed something."""
    def state(self, automaton: Automaton, slot: int, bit: int) -> int:
        """Where the automaton is in the slot's text."""
    def stop(self, slot: int) -> tuple[int, int]:
        """The stop string completed last: its index, and the bytes from its start to the end of the text.

        Of several in one token, the one that was complete first; of those, the longest.
        """

# -- threads ----------------------------------------------------------------------------------------------------

def num_threads() -> int:
    """Threads that take part in a parallel loop, the caller included."""

def set_num_threads(n: int) -> None:
    """1 <= n <= 1024."""

# -- kernels (called by wcse.kernels.ops, which checks and turns tensors into addresses) ---------------------------

def cpu_isa() -> str:
    """Instruction set of the kernels in use."""

def cpu_isas() -> list[str]:
    """Instruction sets that this processor runs, best first."""

def set_cpu_isa(name: str) -> None:
    """Use this one of cpu_isas(), for tests and comparisons; ValueError if it does not run here."""

def unpack_rows() -> int:
    """Up to so many rows linear unpacks quantised weights in registers; beyond, blocks of them into the cache."""

def fma_peak(threads: int, seconds: float = 0.2) -> float:
    """Floating-point operations per second of bare multiply-adds, every thread at its best within that time."""

def dot_peak(threads: int, seconds: float = 0.2) -> float:
    """Integer operations per second of bare dot products of bytes, likewise."""

def tree_attention(
    plan: Plan,
    q: int,
    k_pages: int,
    v_pages: int,
    out: int,
    n_heads: int,
    n_kv_heads: int,
    d: int,
    n_pages: int,
    page_stride: int,
    scale: float,
    softcap: float,
    window: int,
    half: bool,
    threads: int,
    /,
) -> None: ...
def linear(
    x: int,
    panels: int,
    bits: int,
    group: int,
    wide: bool,
    minima: bool,
    integer: bool,
    bias: int,
    residual: int,
    out: int,
    rows: int,
    n: int,
    k: int,
    threads: int,
    /,
) -> None: ...
def rms_norm(
    x: int,
    residual: int,
    weight: int,
    out: int,
    rows: int,
    width: int,
    eps: float,
    offset: float,
    threads: int,
    /,
) -> None: ...
def gated_act(gate_up: int, out: int, rows: int, width: int, gelu: bool, threads: int, /) -> None: ...
def rope_write_kv(
    qkv: int,
    positions: int,
    slots: int,
    cos: int,
    sin: int,
    q_norm: int,
    k_norm: int,
    q: int,
    k_pages: int,
    v_pages: int,
    rows: int,
    n_heads: int,
    n_kv_heads: int,
    d: int,
    n_positions: int,
    n_pages: int,
    page_stride: int,
    eps: float,
    norm_offset: float,
    half: bool,
    threads: int,
    /,
) -> None: ...
def sample(
    logits: int,
    rows: int,
    temperature: int,
    top_k: int,
    top_p: int,
    min_p: int,
    keys: int,
    counters: int,
    tokens: int,
    logprobs: int,
    n_rows: int,
    vocab: int,
    draws: int,
    threads: int,
    /,
) -> None: ...

# -- hooks that only the tests use --------------------------------------------------------------------------------

class _testing:
    @staticmethod
    def fuzz_kv_tree(seed: int, operations: int) -> dict[str, int]: ...
    @staticmethod
    def kv_tree_faults() -> list[str]: ...
    @staticmethod
    def plant_fault(tree: KVTree, name: str, node: int) -> None: ...
    @staticmethod
    def loop(n: int, chunk: int, nested: int = 0, fail_at: int = -1) -> tuple[Int32, str]: ...

class LayerArgs:
    def __init__(
        self,
        norms: Sequence[int],
        matrices: Sequence[tuple[int, int, int, bool, bool, bool, int, int, int]],
        window: int,
        rope: int,
    ) -> None: ...

class Forward:
    def __init__(
        self,
        *,
        layers: Sequence[LayerArgs],
        final_norm: int,
        dim: int,
        n_heads: int,
        n_kv_heads: int,
        d: int,
        eps: float,
        norm_offset: float,
        scale: float,
        softcap: float,
        gelu: bool,
    ) -> None: ...
    def forward(
        self,
        plan: Plan,
        x: int,
        rows: int,
        positions: int,
        slots: int,
        ropes: Sequence[tuple[int, int, int]],
        k_pages: int,
        v_pages: int,
        n_pages: int,
        page_stride: int,
        layer_stride: int,
        half: bool,
        out_rows: int,
        n_out: int,
        out: int,
        threads: int,
    ) -> None: ...

def stage_seconds() -> list[float]: ...
