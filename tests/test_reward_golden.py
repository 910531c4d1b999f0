"""Golden token ids of the families on Qwen2.5's vocabulary, for one record of two steps.

``golden/qwen_tokenizer.json`` is the part of the Qwen2.5 tokenizer (Apache-2.0) that these texts need: its
pre-tokenizer, the merges whose result occurs in them, its ids. ``<extra_0>`` has the id that the PRM's own tokenizer
gives it. The ids below were recorded with the full tokenizer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
from transformers import PreTrainedTokenizerFast

from wcse.reward.families import FAMILIES
from wcse.reward.layout import Layout
from wcse.types import WcseError

PROBLEM = "Compute 2+3*4."
STEPS = ["3*4 = 12.", "2+12 = 14. The answer is \\boxed{14}."]
PROBLEM_IDS = [46254, 220, 17, 10, 18, 9, 19, 13]
STEP_IDS = [
    [18, 9, 19, 284, 220, 16, 17, 13],
    [17, 10, 16, 17, 284, 220, 16, 19, 13, 576, 4226, 374, 1124, 79075, 90, 16, 19, 7810],
]
EXTRA, IM_START, IM_END = 151651, 151644, 151645


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    file = Path(__file__).parent / "golden" / "qwen_tokenizer.json"
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=tiny_models.CHAT_TEMPLATE,
    )


def test_qwen_prm(tokenizer: PreTrainedTokenizerFast) -> None:
    layout = Layout(FAMILIES["qwen_prm"], tokenizer)
    prefix = layout.prefix(PROBLEM)
    first, second = layout.read(PROBLEM, STEPS[:1]), layout.read(PROBLEM, STEPS, ended=True)
    assert len(prefix) == 36
    assert prefix[-3:] == [IM_START, 77091, 198]
    assert (first.read, second.read, len(second.ids)) == (44, 63, 64)
    assert second.ids == prefix + STEP_IDS[0] + [EXTRA] + STEP_IDS[1] + [EXTRA]
    assert first.ids == second.ids[:45]


def test_trl(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.bos_token = None
    layout = Layout(FAMILIES["token_classification"], tokenizer)
    first, second = layout.read(PROBLEM, STEPS[:1]), layout.read(PROBLEM, STEPS)
    tokenizer.bos_token = "<|endoftext|>"
    assert second.ids == PROBLEM_IDS + STEP_IDS[0] + [271] + STEP_IDS[1] + [271]
    assert (first.read, second.read, len(second.ids)) == (16, 35, 36)
    whole = tokenizer.encode(PROBLEM + STEPS[0] + "\n\n" + STEPS[1] + "\n\n", add_special_tokens=False)
    assert whole != second.ids


def test_skywork(tokenizer: PreTrainedTokenizerFast) -> None:
    layout = Layout(FAMILIES["skywork_o1"], tokenizer)
    first, second = layout.read(PROBLEM, STEPS[:1]), layout.read(PROBLEM, STEPS)
    assert (first.read, second.read, len(second.ids)) == (17, 36, 37)
    assert second.ids[0] == 151643
    assert layout.prefix(PROBLEM)[-1] == 624  # ".\n" merges in the prompt
    assert second.ids[-2:] == [7810, 198]  # and not after a step


def test_math_psa(tokenizer: PreTrainedTokenizerFast) -> None:
    layout = Layout(FAMILIES["math_psa"], tokenizer)
    assert layout.tag_id == 76325
    assert layout.column_ids == (488, 481)
    reading = layout.read(PROBLEM, STEPS)
    text = f"{PROBLEM} " + "".join(step + " \n\n\n\n\n" for step in STEPS)
    assert reading.ids == [151643, *tokenizer.encode(text, add_special_tokens=False)]
    assert reading.ids.count(76325) == 2


def test_eurus_merges_the_separator_as_the_whole_text_does(tokenizer: PreTrainedTokenizerFast) -> None:
    layout = Layout(FAMILIES["eurus_prm"], tokenizer)
    first, second = layout.read(PROBLEM, STEPS[:1]), layout.read(PROBLEM, STEPS, ended=True)
    assert first.ids[-1] == 382
    assert second.ids[: len(first.ids)] == first.ids
    assert second.ids[-1] == IM_END


def test_a_base_tokenizer_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(WcseError, match=r"'ки' to be one token .* makes \d|'\[PRM\]' to be one token"):
        Layout(FAMILIES["pqm"], tokenizer)
