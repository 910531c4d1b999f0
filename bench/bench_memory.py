"""KV memory of a search beside one cache per sequence: 256 leaves below a 512-token prompt.

Floor: the unique tokens, rounded up to pages of 16 for each node.
"""

from __future__ import annotations

from typing import Any

import torch

from wcse import zoo
from wcse.engine.generate import Generation, Prompt
from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams
from wcse.engine.spans import pages

PROMPT, LEAVES, NEW = 512, 256, 64


def test_kv_pages_of_a_wide_tree(benchmark: Any) -> None:
    llm = LLM(zoo.path("tiny-wc").as_posix(), max_num_seqs=LEAVES)
    ids = torch.randint(10, 1000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    most = 0, 0

    def run() -> None:
        nonlocal most
        params = SamplingParams(n=LEAVES, max_tokens=NEW, ignore_eos=True)
        Generation(llm.backend, "0", Prompt(ids=ids), params, 0, "", lambda _: None).start()
        while llm.engine.busy:
            llm.engine.step()
            for counts in llm.engine.census().values():
                most = max(most, counts)

    benchmark.pedantic(run, rounds=1)
    shared, alone = most
    # The census counts the token that was drawn but not read yet, hence NEW - 1 stored tokens at the peak.
    assert shared == pages(PROMPT) + LEAVES * pages(NEW - 1)
    assert alone == LEAVES * pages(PROMPT + NEW - 1)
    assert alone > 5 * shared
    page_bytes = llm.engine.runner.pool.bytes_per_page
    benchmark.extra_info |= {
        "pages": shared,
        "pages_per_sequence_storage": alone,
        "times_less": alone / shared,
        "mebibytes": shared * page_bytes / 2**20,
        "unique_tokens": PROMPT + LEAVES * (NEW - 1),
    }
