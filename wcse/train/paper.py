"""What ``wcse experiment wcse-paper`` consists of: its options, its data recipes, its training runs. Runs nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from wcse.recipe import Options, runtime_only
from wcse.synth.recipe import SynthRecipe
from wcse.train.config import Rates, TrainConfig

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Shares of the data at which Distilling Step-by-Step is compared."""

STUDENT = "student"
"""Folder of the student that ``distil_layers`` makes."""


class PaperConfig(Options):
    """Options of the experiment. ``wc``, ``se``: the samplers' models."""

    wc: str = Field(description="weak, cheap model", min_length=1)
    se: str = Field(description="strong, expensive model", min_length=1)
    distil: str | None = Field(
        None, description="a third model as student of both; none leaves distillation out"
    )
    distil_layers: tuple[int, ...] = Field((), description="only these layers of distil; none takes it whole")
    problems: str = Field("gsm_symbolic:size=300,seed=1000000", description="problems to sample on")
    validation: str = Field(
        "gsm_symbolic:size=150,seed=20000000", description="problems that choose rates and checkpoints"
    )
    test: str = Field("gsm_symbolic:size=200,seed=70000000", description="problems of the final scores")
    match: str = Field("flops", description="what is equal between the samplers, as in wcse synth")
    wc_price: tuple[float, float] | None = Field(None, description="for the match 'money'")
    se_price: tuple[float, float] | None = Field(None, description="for the match 'money'")
    budgets: tuple[int, ...] = Field((1, 10), description="samples per problem of se", min_length=1)
    steps: tuple[int, ...] = Field((40, 80), description="optimiser steps at each budget", min_length=1)
    temperature: float = Field(0.8, description="of the samplers", gt=0, le=2)
    max_tokens: int = Field(256, description="most tokens of a solution", ge=1)
    learning_rate: Rates = Field(
        (5e-5, 2e-4, 8e-4),
        description="peaks that validation chooses from on a cell's first seed; its other seeds keep that choice",
    )
    batch_size: int = Field(8, description="rows of a step", ge=1)
    checkpoints: int = Field(2, description="times that validation looks", ge=1)
    samples: int = Field(4, description="samples per test problem for maj@k; 0 draws none", ge=0)
    step_by_step: bool = Field(True, description="also compare label-only with label and rationale")

    out: str = runtime_only(..., "directory of the experiment", min_length=1)
    keep_students: bool = runtime_only(False, "leave the trained students in the directory's cells/")
    threads: int | None = runtime_only(None, "CPU threads of a worker; none shares the cores out", ge=1)
    seeds: int = runtime_only(
        3, "training runs of each cell; the same directory takes more of them later", ge=1
    )
    workers: int = runtime_only(1, "processes that sample and train at the same time", ge=1, le=256)

    @field_validator("budgets", "steps")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
            raise ValueError("must be at least 1")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> PaperConfig:
        if len(self.steps) != len(self.budgets):
            raise ValueError(
                f"steps={list(self.steps)} and budgets={list(self.budgets)}: give one number of steps a budget"
            )
        if self.distil_layers and self.distil is None:
            raise ValueError(f"distil_layers={list(self.distil_layers)}: give the model as distil")
        return self

    def recipe(self, n: int) -> SynthRecipe:
        """The data run of a budget."""
        common: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        samplers = {
            "wc": common | {"model": self.wc, "price": self.wc_price},
            "se": common | {"model": self.se, "price": self.se_price},
        }
        return SynthRecipe.parse(
            {
                "problems": self.problems,
                "samplers": samplers,
                "n": n,
                "match": self.match,
                "export": ("sft", "rationale"),
                "threads": self.threads,
                "workers": self.workers if self.workers > 1 else 0,
            }
        )

    @property
    def threads_each(self) -> int | None:
        """Threads of a training run; None takes torch's own."""
        if self.threads or self.workers == 1:
            return self.threads
        return max(1, len(os.sched_getaffinity(0)) // self.workers)

    def students(self) -> dict[str, str]:
        """Set-up -> the model that is trained."""
        distil = str(Path(self.out) / STUDENT) if self.distil_layers else self.distil
        named = {"distillation": distil, "self-improvement": self.wc, "weak-to-strong": self.se}
        return {name: model for name, model in named.items() if model is not None}


@dataclass(frozen=True)
class Cell:
    """One training run: ``name`` is its folder; ``key`` groups the seeds."""

    key: tuple[str, ...]
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        return "-".join((*self.key, f"seed{self.seed}")).replace(" ", "_")

    def at(self, rate: float) -> Cell:
        """The same run at one learning rate."""
        return replace(self, config=self.config.model_copy(update={"learning_rate": (rate,)}))


def matrix_cells(config: PaperConfig) -> list[Cell]:
    """Set-up x data source x budget x seed."""
    cells = []
    for setup, model in config.students().items():
        for n, steps in zip(config.budgets, config.steps, strict=True):
            for source in ("wc", "se"):
                for seed in range(config.seeds):
                    key = ("matrix", setup, source, str(n))
                    cells.append(_cell(config, key, seed, model, n, steps, source, objective="sft"))
    return cells


def curve_cells(config: PaperConfig) -> list[Cell]:
    """Objective x share of the data x seed: the weak model learns from the strong one's data of the largest budget."""
    cells = []
    n, steps = config.budgets[-1], config.steps[-1]
    for objective in ("label", "step_by_step"):
        for share in SHARES:
            for seed in range(config.seeds):
                key = ("curve", objective, f"{share:g}")
                cells.append(
                    _cell(config, key, seed, config.wc, n, steps, "se", objective=objective, share=share)
                )
    return cells


def _cell(
    config: PaperConfig,
    key: tuple[str, ...],
    seed: int,
    model: str,
    n: int,
    steps: int,
    source: str,
    **options: Any,
) -> Cell:
    given: dict[str, Any] = {
        "model": model,
        "data": str(Path(config.out) / f"data-{n}"),
        "samplers": (source,),
        "max_steps": steps,
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        "checkpoints": config.checkpoints,
        "validation": config.validation,
        "max_new_tokens": config.max_tokens,
        "seed": seed,
        "threads": config.threads_each,
    }
    cell = Cell(key, seed, TrainConfig.parse(given | options | {"out": "."}))
    return Cell(
        key, seed, cell.config.model_copy(update={"out": str(Path(config.out) / "cells" / cell.name)})
    )
