"""The families of process reward models, one small record each: how they lay text out and what they score.

A record is data. ``layout`` turns its templates into token ids, ``load`` finds its head, and neither knows a
family by name: a new family is a new record here and nothing else.

Templates hold the fields ``{bos}``, ``{problem}``, ``{index}`` (of the step, from 0), ``{sep}`` (the model's step
separator) and, from the tokenizer's own chat template, ``{chat_before}``, ``{chat_between}``, ``{chat_after}`` (around
the problem and the solution). Control strings in a template are control tokens; in a problem or a step they stay text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wcse.types import WcseError

Template = tuple[str, ...]
"""Parts of a layout. Where ``Family.apart`` holds, each part is encoded by itself."""

HeadKind = Literal["tensors", "columns", "mean_logit", "ratio", "verdict"]

_CLASSIFIER = (("score",), ("classifier",))
_VALUE = (("v_head.summary",), ("v_head",))
_TWO_LAYERS = (("score.0", "score.2"),)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of process reward models.

    Args:
        name: what ``prm_family`` calls it.
        prompt: what stands before the first step.
        first: what stands before the first step's text and belongs to that step.
        open: the same for every further step.
        close: what follows a step's text; the score is read at its last token.
        end: stands in for ``close`` after the step that ended the solution; None: no difference.
        tail: follows ``close`` for this reading only; the score is read at its last token, and the next step
            goes on before it.
        apart: problem, steps and template parts are encoded one by one; otherwise all text between two control
            tokens is one string for the tokenizer, as where a whole conversation is encoded.
        numbered: a step that does not begin with its number is given "Step n: ".
        replace: (old, new) in problem and step texts.
        tag: the text that must be the last token of a reading, and one token; None: any token may be.
        head: ``tensors`` (classifier or value head of the checkpoint), ``columns`` (two rows of the output
            matrix), ``mean_logit`` (the mean of its rows), ``ratio`` (log-ratio to a reference model) or
            ``verdict`` (parsed from what the model writes).
        tensors: names of the head's linear layers, several spellings.
        outputs: what the last linear layer must have; 0: one or two.
        columns: the (good, bad) tokens.
        writes: the most tokens that the model writes after ``tail`` before the score is read; greedy.
        ask: what follows the written text; the score is read at its last token.
        verdict: of a ``verdict`` head, a pattern with one group; the last match in the written text counts.
        right: what the group holds where the step is right; anything else is wrong.
        bounded: the score is a probability (softmax of two, sigmoid of one); otherwise the raw number, which
            must be neither multiplied nor added up.
        agg: the aggregation that fits how the family was trained.
        separator: ``{sep}`` where the model's config names none.
        max_tokens: longest input the family was made for; 0: the model's own limit.
        reference, beta: of a ``ratio`` head, where the model's config names none.
        architectures, names: classes in ``config.json``, and parts of a model's name, that give it away.
        source: where the layout is described.
    """

    name: str
    prompt: Template
    close: Template = ()
    first: Template = ()
    open: Template = ()
    end: Template | None = None
    tail: Template = ()
    apart: bool = False
    numbered: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    tag: str | None = None
    head: HeadKind = "tensors"
    tensors: tuple[tuple[str, ...], ...] = ()
    outputs: int = 0
    columns: tuple[str, str] | None = None
    writes: int = 0
    ask: Template = ()
    verdict: str | None = None
    right: tuple[str, ...] = ()
    bounded: bool = True
    agg: str = "last"
    separator: str = "\n\n"
    max_tokens: int = 0
    reference: str | None = None
    beta: float | None = None
    architectures: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    source: str = ""


_QWEN_MATH = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"
)
_LLAMA_TURN = "<|start_header_id|>{}<|end_header_id|>\n\n"
_LLAMA_USER, _LLAMA_ASSISTANT = (
    "<|eot_id|>" + _LLAMA_TURN.replace("{}", role) for role in ("user", "assistant")
)
# Llama-3.1's template writes a date into the system turn; it is pinned, or scores would change with the day.
_RLHFLOW = (
    "{bos}" + _LLAMA_TURN.replace("{}", "system") + "Cutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n" + _LLAMA_USER + "{problem}"
)
_CHAT = "{chat_before}{problem}{chat_between}"
_QUESTION = "\nIs the answer correct (Yes/No)?"

_RECORDS = (
    Family(
        name="token_classification",
        prompt=("{bos}", "{problem}"),
        close=("{sep}",),
        apart=True,
        tensors=_CLASSIFIER,
        outputs=2,
        architectures=("ForTokenClassification",),
        names=("-prm-0.2",),
        source="TRL, stepwise supervision; HuggingFaceH4 Qwen2.5-Math-*-PRM-0.2",
    ),
    Family(
        name="qwen_prm800k",
        prompt=(_QWEN_MATH,),
        close=("<extra_0>",),
        tag="<extra_0>",
        tensors=_TWO_LAYERS,
        outputs=2,
        agg="min",
        max_tokens=4096,
        names=("prm800k",),
        source="Qwen2.5-Math-7B-PRM800K, arXiv 2412.06559",
    ),
    Family(
        name="qwen_prm",
        prompt=(_QWEN_MATH,),
        close=("<extra_0>",),
        tag="<extra_0>",
        tensors=_TWO_LAYERS,
        outputs=2,
        agg="prod",
        max_tokens=4096,
        architectures=("Qwen2ForProcessRewardModel",),
        names=("qwen2.5-math-prm",),
        source="Qwen2.5-Math-PRM-7B/72B, arXiv 2501.07301",
    ),
    Family(
        name="skywork_o1",
        prompt=("{bos}", "{problem}\n"),
        close=("\n",),
        apart=True,
        replace=(("\n", " "),),  # in training every line is a step of its own
        tag="\n",
        tensors=_VALUE,
        outputs=1,
        names=("skywork-o1-open-prm",),
        source="Skywork-o1-Open-PRM-Qwen-2.5-1.5B/7B",
    ),
    Family(
        name="rlhflow_orm",
        prompt=(_RLHFLOW,),
        first=(" ",),
        open=("{sep}",),
        tail=(_LLAMA_ASSISTANT,),
        replace=(("ки", ""),),
        head="columns",
        columns=("+", "-"),
        names=("-orm-deepseek", "-orm-mistral"),
        source="RLHFlow/Llama3.1-8B-ORM-*-Data",
    ),
    Family(
        name="rlhflow",
        prompt=(_RLHFLOW,),
        first=(" ",),
        open=("+" + _LLAMA_USER,),  # every earlier turn holds "+", whatever its score was
        close=(_LLAMA_ASSISTANT,),
        head="columns",
        columns=("+", "-"),
        agg="mean",
        names=("rlhflow", "-prm-deepseek", "-prm-mistral"),
        source="RLHFlow/Llama3.1-8B-PRM-Deepseek-Data, -Mistral-Data",
    ),
    Family(
        name="math_shepherd",
        prompt=("{bos}{problem}",),
        first=(" ",),
        open=("\n",),
        close=(" ки",),
        numbered=True,
        tag="ки",
        head="columns",
        columns=("+", "-"),
        names=("math-shepherd",),
        source="peiyi9979/math-shepherd-mistral-7b-prm, arXiv 2312.08935",
    ),
    Family(
        name="er_prm",
        prompt=("{bos}{problem}",),
        first=(" ",),
        close=(" ки",),
        head="columns",
        columns=(" +", " -"),
        names=("llama3.1-math-prm",),
        source="HanningZhang/Llama3.1-Math-PRM, arXiv 2412.11006",
    ),
    Family(
        name="math_psa",
        prompt=("{bos}{problem}",),
        first=(" ",),
        close=(" \n\n\n\n\n",),
        tag=" \n\n\n\n\n",
        head="columns",
        columns=(" +", " -"),
        names=("math-psa",),
        source="openreasoner/Math-psa (LoRA merged), arXiv 2410.09671",
    ),
    Family(
        name="pqm",
        prompt=("{bos}{problem}",),
        first=(" ",),
        open=("\n",),
        close=(" [PRM]",),
        tag="[PRM]",
        tensors=_VALUE,
        outputs=1,
        bounded=False,
        names=("pqm",),
        source="Windy0822/PQM, arXiv 2410.11287",
    ),
    Family(
        name="llemma_rm",
        prompt=("{bos}{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",),
        first=(" ",),
        open=(" ",),
        close=(" ки",),
        tag="ки",
        head="mean_logit",
        names=("llemma-reward-model",),
        source="tkitsers/Llemma-reward-model (REBASE, arXiv 2408.00724)",
    ),
    Family(
        name="eurus_prm",
        prompt=(_CHAT,),
        close=("{sep}",),
        end=("<|im_end|>",),
        head="ratio",
        bounded=False,
        reference="Qwen/Qwen2.5-Math-7B-Instruct",
        beta=0.001,
        names=("eurusprm",),
        source="PRIME-RL/EurusPRM-Stage1/2, arXiv 2412.01981",
    ),
    Family(
        name="implicit",
        prompt=(_CHAT,),
        open=("{sep}",),
        apart=True,
        head="ratio",
        source="arXiv 2412.01981; the embedded tiny-wc-prm",
    ),
    Family(
        name="genrm",
        prompt=(_CHAT,),
        open=("{sep}",),
        tail=(_QUESTION,),
        head="columns",
        columns=(" Yes", " No"),
        source="GenRM, direct: P(Yes) after the question, arXiv 2408.15240",
    ),
    Family(
        name="genrm_cot",
        prompt=(_CHAT,),
        open=("{sep}",),
        tail=("\nLet's verify step by step.",),
        writes=512,
        ask=(_QUESTION,),
        head="columns",
        columns=(" Yes", " No"),
        source="GenRM-CoT: a written rationale, then P(Yes), arXiv 2408.15240",
    ),
    Family(
        name="critic",
        prompt=("{chat_before}[Problem]\n{problem}\n\n[Solution in numbered paragraphs]",),
        first=("\n\n<paragraph_{index}>\n",),
        open=("\n\n<paragraph_{index}>\n",),
        close=("\n</paragraph_{index}>",),
        tail=(
            "\n\nExamine the paragraphs in order. Close with the number of the first one that holds an error, or -1 "
            "if none does, as \\boxed{}.{chat_between}",
        ),
        writes=1024,
        head="verdict",
        verdict=r"\\boxed\{\s*(-?\d+)\s*\}",
        right=("-1",),
        agg="min",
        source="a chat model as a critic, in the manner of ProcessBench, arXiv 2412.06559; the wording is ours",
    ),
    Family(
        name="orm",
        prompt=(_CHAT,),
        open=("{sep}",),
        tail=("{chat_after}",),
        tensors=(*_CLASSIFIER, *_TWO_LAYERS, *_VALUE),
        outputs=1,
        bounded=False,
        architectures=("ForSequenceClassification", "Qwen2ForRewardModel"),
        source="outcome reward models read at the last token: Skywork-Reward, Qwen2.5-Math-RM",
    ),
)

FAMILIES: dict[str, Family] = {record.name: record for record in _RECORDS}


def family_named(name: str) -> Family:
    """The family called ``name``.

    Raises:
        WcseError: unknown; the message lists the known ones.
    """
    if name not in FAMILIES:
        raise WcseError(f"prm_family={name!r}: unknown; known families: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_of(path: str, config: Mapping[str, Any]) -> Family:
    """The family of a model: what its config says of itself, else by its class, else by its name.

    Raises:
        WcseError: neither says anything.
    """
    stated = (config.get("wcse") or {}).get("family")
    if stated is not None:
        return family_named(str(stated))
    architecture = next(iter(config.get("architectures") or []), "the model")
    name = f"{path} {config.get('_name_or_path', '')}".lower()
    for key in (
        lambda family: any(part in name for part in family.names),
        lambda family: any(architecture.endswith(known) for known in family.architectures),
    ):
        for family in FAMILIES.values():
            if key(family):
                return family
    raise WcseError(
        f"prm={path!r}: {architecture} says nothing of its format; set prm_family ({', '.join(FAMILIES)}), "
        "or give a token-classification model"
    )
