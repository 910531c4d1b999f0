"""Loads a verifier: a head beside the policy's weights, or a process reward model of its own.

Knows file names and configs; what layouts mean is in ``families``, what heads compute in ``head``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from wcse.engine.engine import Engine
from wcse.engine.llm import pages_in
from wcse.engine.runner import Runner
from wcse.models.load import LoadedModel, load_model, read_config
from wcse.reward.families import FAMILIES, Family, Layout, family_named
from wcse.reward.head import Head, head_from_tensors
from wcse.reward.readers import HeadReader, LogprobReader, Reader
from wcse.reward.scorer import ImplicitPRM, SeparatePRM, SharedHead
from wcse.types import Quantization, WcseError

SHARED_FILE = "prm_head.safetensors"
"""A shared head lies beside the policy's weights: ``score.*`` tensors, and metadata with its ``default_agg``."""


def load_shared_head(engine: Engine) -> SharedHead:
    """The head on the policy's own hidden states.

    Raises:
        WcseError: there is none beside the policy, or it does not fit it.
    """
    path = Path(engine.model.path) / SHARED_FILE
    if not path.is_file():
        raise WcseError(
            f"prm='shared': {path} does not exist; this policy has no shared head: train one, or give a PRM model"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WcseError(f"{path}: not a whole safetensors file ({error}); make it again") from error
    head = head_from_tensors(tensors, engine.model.spec.dim, source=str(path))
    return SharedHead(engine, head, default_agg=metadata.get("default_agg", "last"))


def load_prm(
    path: str, *, kv_memory: float, family: str | None = None, quantization: Quantization | None = None
) -> SeparatePRM | ImplicitPRM:
    """A process reward model with its own KV tree, or two.

    Args:
        path: as for a policy.
        kv_memory: GiB for its keys and values.
        family: name in ``families.FAMILIES``; None takes what the model says of itself.
        quantization: of its weights (and its reference's) in memory, as in ``load_model``.

    Raises:
        WcseError: the model cannot be loaded, or its head or vocabulary does not fit the family.
    """
    chosen = family_named(family or _guess_family(path, read_config(path)))
    if chosen.ratio:
        return _load_implicit(path, chosen, kv_memory, quantization)
    model = load_model(path, lm_head=False, quantization=quantization)
    layout = _layout(chosen, model, path)
    if layout.column_ids is None:
        head = head_from_tensors(model.extra_tensors(), model.spec.dim, source=path)
    else:
        head = _columns(model, layout.column_ids, path)
    return _separate(model, layout, HeadReader(head), kv_memory)


def _load_implicit(
    path: str, family: Family, kv_memory: float, quantization: Quantization | None
) -> ImplicitPRM:
    """The model and its reference, with half of the memory each."""
    model = load_model(path, quantization=quantization)
    name, beta = model.extras.get("reference"), model.extras.get("beta")
    if not isinstance(name, str) or not isinstance(beta, int | float) or not beta > 0:
        raise WcseError(
            f"prm={path!r}: an implicit PRM needs 'reference' (a model) and 'beta' (a positive number) in the "
            f"'wcse' object of its config.json; it has reference={name!r}, beta={beta!r}"
        )
    reference = load_model(name, quantization=quantization)
    if reference.spec.vocab_size < model.spec.vocab_size:
        raise WcseError(
            f"prm={path!r}: its reference {name!r} has {reference.spec.vocab_size} tokens and the PRM "
            f"{model.spec.vocab_size}; give the model that it was trained against"
        )
    layout = _layout(family, model, path)
    mine, other = (_separate(m, layout, LogprobReader(), kv_memory / 2) for m in (model, reference))
    return ImplicitPRM(mine, other, beta=float(beta), bias=float(model.extras.get("bias", 0.0)))


def _layout(family: Family, model: LoadedModel, path: str) -> Layout:
    return Layout(family, model.tokenizer, separator=model.extras.get("separator", "\n\n"), source=path)


def _separate(model: LoadedModel, layout: Layout, reader: Reader, kv_memory: float) -> SeparatePRM:
    runner = Runner(model.decoder, num_pages=pages_in(model, kv_memory))
    agg = model.extras.get("default_agg", layout.family.default_agg)
    return SeparatePRM(runner, layout, reader, context=model.context, default_agg=agg)


def _guess_family(path: str, config: Mapping[str, Any]) -> str:
    """The family of a model: what its config says, else by its class, else by its name."""
    stated = (config.get("wcse") or {}).get("family")
    if stated is not None:
        return str(stated)
    architecture = next(iter(config.get("architectures") or []), "the model")
    if architecture.endswith("ForTokenClassification"):
        return "token_classification"
    lowered = path.lower()
    if "math-shepherd" in lowered:
        return "math_shepherd"
    if "rlhflow" in lowered or "prm-deepseek" in lowered or "prm-mistral" in lowered:
        return "rlhflow"
    raise WcseError(
        f"prm={path!r}: {architecture} says nothing of its format; set prm_family "
        f"({', '.join(FAMILIES)}), or give a token-classification model"
    )


def _columns(model: LoadedModel, columns: tuple[int, int], path: str) -> Head:
    """The two rows of the output matrix that hold the verdict, as a head: never the whole vocabulary."""
    good, bad = columns
    weight = model.output_rows([bad, good])
    if weight is None:
        raise WcseError(f"prm={path!r}: it has no language-model head; use prm_family='token_classification'")
    return Head([(weight.to(torch.float32), None)])
