"""Loads a verifier: a head beside the policy's weights, or a process reward model of its own.

Knows file names and configs; what layouts mean is in ``families``, what heads compute in ``head``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from wcse.engine.engine import Engine
from wcse.engine.memory import Memory
from wcse.engine.runner import Runner
from wcse.models.load import LoadedModel, load_model, read_config
from wcse.recipe import OWN, SHARED
from wcse.reward.families import Family, family_named, family_of
from wcse.reward.generative import GenerativePRM
from wcse.reward.head import Head, head_from_tensors
from wcse.reward.layout import Layout
from wcse.reward.readers import HeadReader, LogprobReader, Reader
from wcse.reward.scorer import ImplicitPRM, SeparatePRM, SharedHead
from wcse.reward.text import TextPRM
from wcse.reward.uncertainty import PolicyScorer
from wcse.types import Quantization, WcseError

SHARED_FILE = "prm_head.safetensors"
"""A shared head lies beside the policy's weights: ``score.*`` tensors, and metadata with its ``default_agg``."""


def load_verifier(
    name: str,
    engine: Engine,
    *,
    kv_memory: float | Memory,
    family: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    quantization: Quantization | None = None,
) -> SharedHead | PolicyScorer | TextPRM:
    """The verifier of that name: 'shared', 'policy:MEASURE', or a model of its own.

    Raises:
        WcseError: as ``load_shared_head``, ``PolicyScorer`` or ``load_prm``, or ``quantization`` is of no weights.
    """
    if quantization is not None and (name == SHARED or name.startswith(OWN)):
        raise WcseError(f"prm_quantization={quantization!r} needs a verifier of its own; prm is {name!r}")
    if name == SHARED:
        return load_shared_head(engine)
    if name.startswith(OWN):
        return PolicyScorer(engine, name.removeprefix(OWN))
    return load_prm(
        name,
        kv_memory=kv_memory,
        family=family,
        device=device,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        quantization=quantization,
    )


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
    return SharedHead(
        engine, head.to(engine.model.decoder.device), default_agg=metadata.get("default_agg", "last")
    )


def load_prm(
    path: str,
    *,
    kv_memory: float | Memory,
    family: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    quantization: Quantization | None = None,
) -> TextPRM:
    """A process reward model with its own KV tree, or two.

    Args:
        path: as for a policy.
        kv_memory: for its keys and values: GiB, or a budget that it shares with other models.
        family: name in ``families.FAMILIES``; None takes what the model says of itself.
        device, dtype, kv_cache_dtype, quantization: of it (and its reference), as in ``load_model``.

    Raises:
        WcseError: the model cannot be loaded, or its head or vocabulary does not fit the family.
    """
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "quantization": quantization,
    }
    record = family_named(family) if family else family_of(path, read_config(path))
    if record.head == "ratio":
        return _load_implicit(path, record, kv_memory, options)
    if record.writes:
        return _load_generative(path, record, kv_memory, options)
    model = load_model(path, lm_head=False, **options)
    layout = _layout(record, model, path)
    head = _head(record, model, layout, path).to(model.decoder.device)
    return _separate(model, layout, HeadReader(head), kv_memory)


def _head(family: Family, model: LoadedModel, layout: Layout, path: str) -> Head:
    """The family's head. Of an output matrix only the rows that hold the verdict are used, never all of it."""
    if family.head == "tensors":
        return head_from_tensors(
            model.extra_tensors(),
            model.spec.dim,
            source=path,
            names=family.tensors,
            outputs=family.outputs,
            bounded=family.bounded,
        )
    if layout.column_ids is not None:
        good, bad = layout.column_ids
        weight = model.output_rows([bad, good])
    else:
        weight = model.output_rows(range(model.spec.vocab_size))
        weight = None if weight is None else weight.double().mean(0, keepdim=True)
    if weight is None:
        raise WcseError(
            f"prm={path!r}: family {family.name!r} reads the language-model head and the checkpoint has none "
            f"(it says {model.architecture or 'nothing'}); set the prm_family that fits it"
        )
    return Head([(weight.to(torch.float32), None)], family.bounded)


def _load_generative(
    path: str, family: Family, kv_memory: float | Memory, options: dict[str, Any]
) -> GenerativePRM:
    """A verifier that writes, with an engine of its own."""
    model = load_model(path, **options)
    family = replace(family, writes=int(model.extras.get("writes", family.writes)))
    layout = _layout(family, model, path)
    head = None
    if family.head == "columns":
        head = _head(family, model, layout, path).to(model.decoder.device)
    memory = kv_memory if isinstance(kv_memory, Memory) else Memory.gib(kv_memory)
    context, agg = _limits(model, family)
    return GenerativePRM(Engine(model, memory=memory), layout, head, context=context, default_agg=agg)


def _load_implicit(
    path: str, family: Family, kv_memory: float | Memory, options: dict[str, Any]
) -> ImplicitPRM:
    """The model and its reference, over one budget."""
    model = load_model(path, **options)
    name = model.extras.get("reference", family.reference)
    beta = model.extras.get("beta", family.beta)
    if not isinstance(name, str) or not isinstance(beta, int | float) or not beta > 0:
        raise WcseError(
            f"prm={path!r}: an implicit PRM needs 'reference' (a model) and 'beta' (a positive number) in the "
            f"'wcse' object of its config.json; it has reference={name!r}, beta={beta!r}"
        )
    reference = load_model(name, **options)
    if reference.spec.vocab_size < model.spec.vocab_size:
        raise WcseError(
            f"prm={path!r}: its reference {name!r} has {reference.spec.vocab_size} tokens and the PRM "
            f"{model.spec.vocab_size}; give the model that it was trained against"
        )
    layout = _layout(family, model, path)
    if not isinstance(kv_memory, Memory):
        kv_memory = Memory.gib(kv_memory)
    mine = _separate(model, layout, LogprobReader(), kv_memory)
    other = _separate(reference, replace(layout, source=name), LogprobReader(), kv_memory)
    return ImplicitPRM(mine, other, beta=float(beta), bias=float(model.extras.get("bias", 0.0)))


def _layout(family: Family, model: LoadedModel, path: str) -> Layout:
    return Layout(
        family,
        model.tokenizer,
        separator=model.extras.get("separator"),
        vocab_size=model.spec.vocab_size,
        source=path,
    )


def _separate(model: LoadedModel, layout: Layout, reader: Reader, kv_memory: float | Memory) -> SeparatePRM:
    memory = kv_memory if isinstance(kv_memory, Memory) else Memory.gib(kv_memory)
    runner = Runner(model.decoder, memory=memory)
    context, agg = _limits(model, layout.family)
    return SeparatePRM(runner, layout, reader, context=context, default_agg=agg)


def _limits(model: LoadedModel, family: Family) -> tuple[int, str]:
    """Longest input in tokens, and the aggregation, which a model may state itself."""
    context = min(model.context, family.max_tokens or model.context)
    return context, str(model.extras.get("default_agg", family.agg))
