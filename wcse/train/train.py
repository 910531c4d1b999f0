"""Fine-tune a model, at several learning rates if asked to, and keep the checkpoint that validation likes best.

Models are transformers', so anything with a causal or encoder-decoder head can be a student; the trainers are TRL's
and transformers', LoRA is peft's. Validation of causal models goes through wcse's own engine.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wcse.data.disk import atomic_file
from wcse.models.load import find_model
from wcse.problems import load_problems
from wcse.train.config import TrainConfig
from wcse.train.evaluate import evaluate
from wcse.train.rows import Loaded, load_items
from wcse.train.trainers import OnStep, StepReport, adapted, run_trainer, total_steps
from wcse.types import Problem, WcseError

REPORT = "training.json"
_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model",
    "vocab.json", "merges.txt", "added_tokens.json", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What came out. ``used`` of ``rows`` rows were trained on.

    ``steps``: of each learning rate. ``checkpoints``: learning rate, step, mean loss by task since the one before,
    validation accuracy or None. ``best`` is the index of the one that was kept.
    """

    folder: Path
    rows: int
    used: int
    left_out: dict[str, int]
    steps: int
    checkpoints: list[dict[str, Any]]
    best: int


def train(config: TrainConfig, on_step: OnStep = lambda _: None) -> Trained:
    """Train, validate at each checkpoint, and leave the best one in ``config.out``.

    Raises:
        WcseError: model or data cannot be read, an extra package is missing, no row can be used, or the loss
            is not a number.
    """
    source = find_model(config.model)
    if source.suffix == ".gguf":
        raise WcseError(
            f"model={config.model!r}: a GGUF file cannot be trained; give the Hugging Face folder"
        )
    out = Path(config.out)
    if (out / REPORT).is_file():
        raise WcseError(f"out={config.out!r} holds a trained model; give another folder or remove it")
    with _threads(config.threads):
        model, tokenizer = load_student(source)
        context = getattr(model.config, "max_position_embeddings", None) or config.max_length
        loaded = load_items(config, tokenizer, seq2seq=model.config.is_encoder_decoder, context=context)
        run = _Run(config, tokenizer, source, out, loaded, on_step)
        for number, rate in enumerate(config.learning_rate):
            if number:
                model, _ = load_student(source)
            torch.manual_seed(config.seed)  # a rate's result does not depend on those before it
            model = adapted(model, config)
            run.begin(model, rate)
            run_trainer(model, tokenizer, loaded.groups, config, rate, run.heard)
    return run.finish()


def load_student(source: Path) -> tuple[Any, Any]:
    """A transformers model in fp32 and its tokenizer.

    Raises:
        WcseError: transformers cannot load it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        kind = AutoConfig.from_pretrained(source)
        auto = AutoModelForSeq2SeqLM if kind.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_pretrained(source, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers raises its own, the hub's and the tokenizer library's errors
        raise WcseError(
            f"model={str(source)!r}: cannot be loaded: {' '.join(str(error).split())[:300]}"
        ) from error


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy what a model's folder has beside its weights and shape."""
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


class _Run:
    """Looks at the model at each checkpoint, and keeps the best."""

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: Any,
        source: Path,
        out: Path,
        loaded: Loaded,
        on_step: OnStep,
    ) -> None:
        self._config = config
        self._source = source
        self._out = out
        self._loaded = loaded
        self._tokenizer = tokenizer
        self._on_step = on_step
        self._steps = total_steps(config, len(loaded.groups))
        looks = min(config.checkpoints, self._steps)
        self._marks = {round((i + 1) * self._steps / looks) for i in range(looks)}
        self._problems = _validation(config, loaded)
        self._seen: list[dict[str, Any]] = []
        self._best: int | None = None

    def begin(self, model: Any, rate: float) -> None:
        """``heard`` is now about this model, trained at this rate."""
        self._model, self._rate = model, rate
        self._sums: dict[str, list[float]] = {}

    def heard(self, report: StepReport) -> None:
        for task, loss in report.losses.items():
            if loss != loss:
                raise WcseError(f"step {report.step}: the loss is not a number; lower learning_rate")
            self._sums.setdefault(task, []).append(loss)
        self._on_step(report)
        if report.step in self._marks:
            self._look(report.step)

    def _look(self, step: int) -> None:
        losses = {task: sum(values) / len(values) for task, values in self._sums.items()}
        self._sums = {}
        folder = self._out.with_name(self._out.name + ".now")
        self._save(folder)
        accuracy = self._accuracy(folder) if self._problems else None
        self._seen.append({"learning_rate": self._rate, "step": step, "loss": losses, "accuracy": accuracy})
        best = None if self._best is None else self._seen[self._best]["accuracy"]
        if (
            best is None or accuracy is None or accuracy > best
        ):  # the earlier of equals; the last without validation
            self._best = len(self._seen) - 1
            shutil.rmtree(self._out, ignore_errors=True)
            folder.rename(self._out)
        else:
            shutil.rmtree(folder)

    def _save(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        model = self._model
        if self._config.lora_rank:
            model.merge_adapter()
            state = {
                name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
                for name, weight in model.state_dict().items()
                if "lora_" not in name
            }
            model.get_base_model().save_pretrained(folder, state_dict=state)
            model.unmerge_adapter()
        else:
            model.save_pretrained(folder)
        copy_tokenizer(self._source, folder)

    def _accuracy(self, folder: Path) -> float:
        config = self._config
        prefix = "" if config.objective == "sft" else config.label_prefix
        if self._model.config.is_encoder_decoder:
            return seq2seq_accuracy(
                self._model, self._tokenizer, self._problems, prefix, config.max_new_tokens
            )
        return evaluate(folder, self._problems, max_tokens=config.max_new_tokens, prefix=prefix).greedy

    def finish(self) -> Trained:
        assert self._best is not None, "the last step is a checkpoint"
        loaded = self._loaded
        result = Trained(
            self._out,
            loaded.rows,
            len(loaded.groups),
            dict(loaded.left_out),
            self._steps,
            self._seen,
            self._best,
        )
        with atomic_file(self._out / REPORT) as file:
            facts = {
                "config": self._config.model_dump(mode="json"),
                "rows": result.rows,
                "used": result.used,
            }
            facts |= {"left_out": result.left_out, "steps": result.steps, "checkpoints": result.checkpoints}
            facts |= {"best": self._seen[self._best]}
            file.write(json.dumps(facts, indent=1).encode("ascii") + b"\n")
        return result


@torch.inference_mode()
def seq2seq_accuracy(model: Any, tokenizer: Any, problems: list[Problem], prefix: str, most: int) -> float:
    """Share of problems that an encoder-decoder model answers right, by greedy decoding."""
    from wcse.answers import Verdict, extract_answer, is_correct

    model.eval()
    right = 0
    for problem in problems:
        ids = tokenizer(prefix + problem.prompt, return_tensors="pt").input_ids.to(model.device)
        made = model.generate(input_ids=ids, max_new_tokens=most, do_sample=False)[0]
        text = tokenizer.decode(made, skip_special_tokens=True)
        answer = extract_answer(text) or text.strip()
        right += problem.answer is not None and is_correct(answer, problem.answer) is Verdict.EQUAL
    return right / len(problems)


def _validation(config: TrainConfig, loaded: Loaded) -> list[Problem]:
    """The problems to select by; refused where training data has them too."""
    if config.validation is None:
        return []
    problems = load_problems(config.validation, limit=config.validation_limit)
    shared = sum(problem.prompt.strip() in loaded.questions for problem in problems)
    if shared:
        raise WcseError(
            f"validation={config.validation!r}: {shared} of its problems are in the training data; "
            "use other seeds or splits"
        )
    return problems


@contextmanager
def _threads(count: int | None) -> Any:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
