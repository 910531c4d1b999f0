"""Layouts: append-only whatever the texts, one read a step, the family's own closing tokens."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import prm_models
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from wcse.reward.families import FAMILIES
from wcse.reward.layout import Layout
from wcse.types import WcseError

WORDS = st.text(st.sampled_from("ab 12+=.,\n\t$é日—()\\{}<|>ки[]"), min_size=1, max_size=24)
STEP = WORDS.filter(lambda text: bool(text.strip()) and "ки" not in text)


@cache
def layout_of(name: str) -> Layout:
    case = prm_models.CASES.get(name)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=(case.tokenizer if case else prm_models.byte_level)(),
        eos_token="<|end|>",
        bos_token="<s>",
        chat_template=tiny_models.CHAT_TEMPLATE,
    )
    return Layout(FAMILIES[name], tokenizer)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@settings(max_examples=10, deadline=None)
@given(problem=STEP, steps=st.lists(STEP, min_size=1, max_size=4))
def test_a_further_step_changes_nothing_before_it(name: str, problem: str, steps: list[str]) -> None:
    layout = layout_of(name)
    prefix = layout.prefix(problem)
    readings = [layout.read(problem, steps[: i + 1]) for i in range(len(steps))]
    assert all(a.read < b.read for a, b in pairwise(readings))
    if name == "er_prm":  # its tag is ordinary text: the next step's first letters may merge with it
        return
    whole = readings[-1].ids
    assert whole[: len(prefix)] == prefix
    for reading in readings:
        assert whole[: len(reading.ids)] == reading.ids
        if layout.tag_id is not None:
            assert (reading.tail or reading.ids)[-1] == layout.tag_id
    if layout.tag_id is not None and (layout.family.tag or "").strip():
        assert whole.count(layout.tag_id) == len(steps)


def test_numbered_steps_keep_their_own_numbers() -> None:
    layout = layout_of("math_shepherd")
    plain = layout.read("p", ["add", "so 3"])
    assert layout.read("p", ["Step 1: add", "Step 2: so 3"]).ids == plain.ids
    assert layout.read("p", ["Steps add", "so 3"]).ids != plain.ids


def test_the_last_step_closes_with_the_end_of_the_turn() -> None:
    layout = layout_of("eurus_prm")
    going, ended = (layout.read("p", ["a", "b"], ended=flag) for flag in (False, True))
    assert ended.ids[-1] == layout.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert going.ids[-1] != ended.ids[-1]


def test_a_tokenizer_that_merges_the_tag_with_a_step_is_refused() -> None:
    layout = layout_of("math_shepherd")
    broken = Layout(FAMILIES["math_shepherd"], layout.tokenizer)
    encode = broken._encode
    broken._encode = lambda text: (*encode(text)[:-1], 5)  # type: ignore[assignment]
    with pytest.raises(
        WcseError, match="merges the tag 'ки' of family 'math_shepherd' with the step before it"
    ):
        broken.read("p", ["a"])
