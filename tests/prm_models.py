"""A small random model of every PRM family, as its authors publish it, and an independent way to score with it.

``render`` writes the whole conversation as the family's documentation shows it, encodes it in one go and finds
the read positions by looking for the tag: the way the published scripts work, and none of ``wcse.reward``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

CONTROL = ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<extra_0>", "[PRM]")
PLAIN = ("ки", " \n\n\n\n\n")
DIM = 64
BETA = 0.07
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
LLAMA_SYSTEM = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def byte_level() -> Tokenizer:
    """The tiny byte-level tokenizer with the control tokens and tags of all families."""
    tokenizer = Tokenizer.from_str(tiny_models.byte_level().to_str())
    tokenizer.add_special_tokens(list(CONTROL))
    tokenizer.add_tokens([*PLAIN, " +", " -", " Yes", " No"])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Llama-2 style: a word mark goes before every text, and the tag is one token with its mark."""
    parts = json.loads(tiny_models.sentencepiece_style().to_str())
    vocab, merges = parts["model"]["vocab"], parts["model"]["merges"]
    size = max([*vocab.values(), *(token["id"] for token in parts["added_tokens"])]) + 1
    new = [piece for piece in ("к", "и", "ки", "▁ки", "+", "-", "▁+", "▁-") if piece not in vocab]
    vocab |= {piece: size + i for i, piece in enumerate(new)}
    merges += [["к", "и"], ["▁", "ки"], ["▁", "+"], ["▁", "-"]]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@dataclass(frozen=True)
class Case:
    """How a family's model is built, and how its documentation renders a solution."""

    variant: str
    head: dict[str, tuple[int, ...]]
    """Names and shapes of the tensors beside the decoder; empty: a causal language model."""
    render: Callable[[Any, str, Sequence[str]], tuple[list[int], list[int]]]
    read: Callable[[torch.Tensor, dict[str, torch.Tensor], Any], torch.Tensor]
    """Scores from hidden states [reads, dim], the head's tensors (with lm_head), and the tokenizer."""
    bos: bool = True
    tokenizer: Callable[[], Tokenizer] = byte_level
    architecture: str | None = None


def _ends(ids: list[int], tag: int) -> list[int]:
    return [i for i, token in enumerate(ids) if token == tag]


def _plain(tokenizer: Any, text: str) -> list[int]:
    """The whole text with one BOS, as ``tokenizer(text)`` gives it."""
    return [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]


def trl(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    ids, reads = list(tokenizer(problem)["input_ids"]), []
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    separator = tokenizer.encode("\n\n", add_special_tokens=False)
    for step in steps:
        ids = ids + tokenizer(step, add_special_tokens=False)["input_ids"] + separator
        reads.append(len(ids) - 1)
    return ids, reads


def qwen(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    messages = [
        ("system", QWEN_SYSTEM),
        ("user", problem),
        ("assistant", "<extra_0>".join(steps) + "<extra_0>"),
    ]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    ids = tokenizer.encode(text, add_special_tokens=False)
    reads = _ends(ids, tokenizer.convert_tokens_to_ids("<extra_0>"))
    return ids, reads


def skywork(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    ids, reads = [tokenizer.bos_token_id, *tokenizer.encode(problem + "\n")], []
    for step in steps:
        ids += [*tokenizer.encode(step.replace("\n", " ")), tokenizer.encode("\n")[-1]]
        reads.append(len(ids) - 1)
    return ids, reads


def _turn(role: str, content: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"


def rlhflow(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    text = "<s>" + _turn("system", LLAMA_SYSTEM)
    reads = []
    for i, step in enumerate(steps):
        text += _turn("user", f"{problem} {step}" if i == 0 else step) + _turn("assistant", "+")
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids[-1] == tokenizer.convert_tokens_to_ids("<|eot_id|>")
        reads.append(len(ids) - 3)
    return ids, reads


def rlhflow_orm(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    content = problem + " " + "\n\n".join(steps).replace("ки", "")
    text = "<s>" + _turn("system", LLAMA_SYSTEM) + _turn("user", content) + _turn("assistant", "+")
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids, [len(ids) - 3]


def shepherd(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    ids = _plain(tokenizer, f"{problem} " + "\n".join(f"Step {i}: {s} ки" for i, s in enumerate(steps, 1)))
    return ids, _ends(ids, tokenizer.encode("ки", add_special_tokens=False)[-1])


def er_prm(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    ids = _plain(tokenizer, f"{problem} " + "".join(f"{s} ки" for s in steps))
    return ids, _ends(ids, tokenizer.encode(" ки", add_special_tokens=False)[-1])


def math_psa(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    tag = " \n\n\n\n\n"
    ids = _plain(tokenizer, f"{problem} " + "".join(s + tag for s in steps))
    return ids, _ends(ids, tokenizer.encode(tag, add_special_tokens=False)[-1])


def pqm(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    ids = _plain(tokenizer, f"{problem} " + "".join(f"{s} [PRM]\n" for s in steps))
    return ids, _ends(ids, tokenizer.convert_tokens_to_ids("[PRM]"))


def llemma(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    prompt = f"{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    ids = _plain(tokenizer, prompt + "".join(f" {s} ки" for s in steps))
    return ids, _ends(ids, tokenizer.encode("ки", add_special_tokens=False)[-1])


def _chat(tokenizer: Any, problem: str, content: str) -> list[int]:
    messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": content}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


def eurus(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    whole, end = _chat(tokenizer, problem, "\n\n".join(steps)), tokenizer.convert_tokens_to_ids("<|im_end|>")
    reads = []
    for i in range(1, len(steps)):
        part = _chat(tokenizer, problem, "\n\n".join(steps[:i]) + "\n\n")
        reads.append(len(part) - 1 - part[::-1].index(end) - 1)
    return whole, [*reads, len(whole) - 1 - whole[::-1].index(end)]


def genrm(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    user = [{"role": "user", "content": problem}]
    text = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    text += "\n\n".join(steps) + "\nIs the answer correct (Yes/No)?"
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids, [len(ids) - 1]


def orm(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    ids = _chat(tokenizer, problem, "\n\n".join(steps))
    return ids, [len(ids) - 1]


def _classified(hidden: torch.Tensor, tensors: dict[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
    return (hidden @ tensors["score.weight"].T + tensors["score.bias"]).softmax(-1)[:, 1]


def _two_layers(hidden: torch.Tensor, tensors: dict[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
    inner = torch.relu(hidden @ tensors["score.0.weight"].T + tensors["score.0.bias"])
    return (inner @ tensors["score.2.weight"].T + tensors["score.2.bias"]).softmax(-1)[:, 1]


def _value(hidden: torch.Tensor, tensors: dict[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
    return (hidden @ tensors["v_head.summary.weight"].T + tensors["v_head.summary.bias"])[:, 0]


def _sigmoid_value(hidden: torch.Tensor, tensors: dict[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
    return _value(hidden, tensors, tokenizer).sigmoid()


def _verdict(good: str, bad: str) -> Callable[..., torch.Tensor]:
    def read(hidden: torch.Tensor, tensors: dict[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
        columns = [tokenizer.encode(text, add_special_tokens=False)[-1] for text in (good, bad)]
        return (hidden @ tensors["lm_head.weight"].T)[:, columns].softmax(-1)[:, 0]

    return read


def _mean_logit(hidden: torch.Tensor, tensors: dict[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
    return (hidden @ tensors["lm_head.weight"].T).mean(-1).sigmoid()


def _scalar(hidden: torch.Tensor, tensors: dict[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
    return (hidden @ tensors["score.weight"].T)[:, 0]


_TWO = {
    "score.0.weight": (DIM, DIM),
    "score.0.bias": (DIM,),
    "score.2.weight": (2, DIM),
    "score.2.bias": (2,),
}
_V = {"v_head.summary.weight": (1, DIM), "v_head.summary.bias": (1,)}
_CLASS = {"score.weight": (2, DIM), "score.bias": (2,)}
CASES: dict[str, Case] = {
    "token_classification": Case(
        "qwen2", _CLASS, trl, _classified, False, byte_level, "Qwen2ForTokenClassification"
    ),
    "qwen_prm": Case("qwen2", _TWO, qwen, _two_layers, False, byte_level, "Qwen2ForProcessRewardModel"),
    "qwen_prm800k": Case("qwen2", _TWO, qwen, _two_layers, False),
    "skywork_o1": Case("qwen2", _V, skywork, _sigmoid_value),
    "rlhflow": Case("llama3-rope", {}, rlhflow, _verdict("+", "-")),
    "rlhflow_orm": Case("llama", {}, rlhflow_orm, _verdict("+", "-")),
    "math_shepherd": Case("mistral", {}, shepherd, _verdict("+", "-"), True, sentencepiece),
    "er_prm": Case("llama", {}, er_prm, _verdict(" +", " -")),
    "math_psa": Case("qwen2", {}, math_psa, _verdict(" +", " -")),
    "pqm": Case("llama", _V, pqm, _value),
    "llemma_rm": Case("llama", {}, llemma, _mean_logit, True, sentencepiece),
    "orm": Case(
        "llama", {"score.weight": (1, DIM)}, orm, _scalar, False, byte_level, "LlamaForSequenceClassification"
    ),
    "genrm": Case("llama", {}, genrm, _verdict(" Yes", " No"), False),
    "eurus_prm": Case("qwen2", {}, eurus, _scalar, False),
}


def build(name: str, folder: Path, *, seed: int = 5) -> Path:
    """Write the model of a family to ``folder`` as its authors would: safetensors, config, tokenizer."""
    case = CASES[name]
    tiny_models.build(case.variant, folder, seed=seed, tie_word_embeddings=False)
    extra = {"bos_token": "<s>"} if case.bos else {}
    PreTrainedTokenizerFast(
        tokenizer_object=case.tokenizer(),
        eos_token="<|end|>",
        pad_token="<|end|>",
        chat_template=tiny_models.CHAT_TEMPLATE,
        **extra,
    ).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    if case.head:
        generator = torch.Generator().manual_seed(seed)
        del tensors["lm_head.weight"]
        tensors |= {k: torch.randn(shape, generator=generator) / 8 for k, shape in case.head.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    if case.architecture:
        config["architectures"] = [case.architecture]
    if name == "eurus_prm":
        reference = tiny_models.build("llama", folder.parent / f"{folder.name}-reference", seed=seed + 1)
        config["wcse"] = {"family": name, "reference": str(reference), "beta": BETA}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class FullText:
    """Scores by a full forward of transformers over the independent rendering."""

    def __init__(self, name: str, folder: Path, tokenizer: Any) -> None:
        self.case, self.tokenizer, self.name = CASES[name], tokenizer, name
        self.tensors = load_file(folder / "model.safetensors")
        self.config = json.loads((folder / "config.json").read_text())
        self.folder = folder

    def scores(self, problem: str, steps: Sequence[str]) -> list[float]:
        """Scores of all steps; of the last one only where a family reads whole answers."""
        ids, reads = self.case.render(self.tokenizer, problem, steps)
        if self.name == "eurus_prm":
            return self._ratio(ids, reads, problem)
        if not hasattr(self, "model"):
            self.model = AutoModel.from_pretrained(self.folder, dtype=torch.float32).eval()
        with torch.no_grad():
            hidden = self.model(torch.tensor([ids])).last_hidden_state[0, reads]
        return self.case.read(hidden, self.tensors, self.tokenizer).tolist()

    def _ratio(self, ids: list[int], reads: list[int], problem: str) -> list[float]:
        if not hasattr(self, "models"):
            paths = (self.folder, self.config["wcse"]["reference"])
            self.models = [AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32).eval() for p in paths]
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": problem}], add_generation_prompt=True, tokenize=False
        )
        start = len(self.tokenizer.encode(prompt, add_special_tokens=False))
        with torch.no_grad():
            tables = [model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for model in self.models]
        mine, other = (t.gather(1, torch.tensor(ids[1:])[:, None])[:, 0] for t in tables)
        sums = (mine - other)[start - 1 :].cumsum(0)
        return [BETA * float(sums[read - start]) for read in reads]
