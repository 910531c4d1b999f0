"""Everything that is derived from a data run's journal: training files, measures, errors, the card. No model.

The journal is read once, problem by problem. Files are replaced whole or not at all; ``manifest.json``, written
last, names them with their digests.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wcse.data.disk import Disk, atomic_file, clear_unfinished
from wcse.data.journal import read_bodies
from wcse.synth.card import card
from wcse.synth.cost import Size, price_of
from wcse.synth.exports import FORMATS, Context
from wcse.synth.filters import Filters
from wcse.synth.judges import Judge, Labels, by_labels, by_steps, by_verifier, by_worked
from wcse.synth.match import Balance
from wcse.synth.measures import Measures
from wcse.synth.page import page
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import ProblemSamples, SynthRecord, by_problem
from wcse.synth.run import Totals
from wcse.synth.shards import Shards
from wcse.types import Problem, WcseError

DATA = "data"
MEASURES = "measures.json"
ERRORS = "errors.jsonl"
CARD = "README.md"
REPORT = "report.html"
MANIFEST = "manifest.json"

PRM_THRESHOLD = 0.5


@dataclass(frozen=True)
class Derived:
    """The written files and what they say. ``digest`` covers the training files alone: equal samples and
    options, equal digest."""

    directory: Path
    measures: dict[str, Any]
    digest: str


def read_synth(directory: str | Path) -> Iterator[SynthRecord]:
    """The records of a data run, problem by problem, samplers and blocks in order.

    Raises:
        WcseError: there is no journal, or its header cannot be read.
    """
    return (SynthRecord.from_json(key, body) for key, body in read_bodies(directory))


def write_synth(
    directory: str | Path,
    recipe: SynthRecipe,
    totals: Totals,
    balances: Sequence[Balance],
    sizes: Mapping[str, Size],
    *,
    evaluation: Iterable[Problem] = (),
    labels: Labels | None = None,
    judged: Labels | None = None,
    bad_rows: Sequence[str] = (),
) -> Derived:
    """Derive all outputs from the journal in ``directory`` and put them beside it. One process at a time: hold the
    journal open.

    Args:
        evaluation: problems that must not leak into the data.
        labels: what people said of samples, to correct the judges by. ``judged``: what a model said.
        bad_rows: messages of problem rows that could not be used.

    Raises:
        WcseError: there is no journal or it cannot be read, or the directory cannot be written.
    """
    folder = Path(directory)
    try:
        return _Writer(folder, recipe, Filters(recipe.filters, evaluation), labels, judged, bad_rows).write(
            totals, balances, sizes
        )
    except OSError as error:
        raise WcseError(
            f"{str(folder)!r}: the outputs cannot be written: {error.strerror or error}; the journal is intact: "
            "free some space or make it writable, then run the same command again"
        ) from error


class _Writer:
    """One pass over the journal."""

    def __init__(
        self,
        folder: Path,
        recipe: SynthRecipe,
        filters: Filters,
        labels: Labels | None,
        judged: Labels | None,
        bad_rows: Sequence[str],
    ) -> None:
        self._folder = folder
        self._recipe = recipe
        self._filters = filters
        self._bad_rows = bad_rows
        digest = hashlib.sha256(json.dumps(recipe.generation(), sort_keys=True).encode()).hexdigest()
        self._context = Context(digest, {name: spec.system_prompt for name, spec in recipe.samplers.items()})
        judges: dict[str, Judge] = {"steps": by_steps, "worked": by_worked}
        if any(spec.prm for spec in recipe.samplers.values()):
            judges["prm"] = by_verifier(PRM_THRESHOLD)
        if judged is not None:
            judges["model"] = by_labels(judged)
        people = by_labels(labels) if labels is not None else None
        if people is not None:
            judges["human"] = people
        self._measures = Measures(recipe.order, judges, people)
        data = folder / DATA
        data.mkdir(exist_ok=True)
        clear_unfinished(data)
        self._shards = {
            name: Shards(data, name, FORMATS[name].schema, recipe.rows_per_shard) for name in recipe.export
        }
        self._kinds: Counter[str] = Counter()

    def write(self, totals: Totals, balances: Sequence[Balance], sizes: Mapping[str, Size]) -> Derived:
        with atomic_file(self._folder / ERRORS, sync_name=False) as errors:
            for message in self._bad_rows:
                self._kinds["bad_row"] += 1
                errors.write(_line({"kind": "bad_row", "message": message}))
            for group in by_problem(read_synth(self._folder)):
                self._add(group, errors)
        with ThreadPoolExecutor() as threads:  # they wait for the disk, together
            list(threads.map(Shards.close, self._shards.values()))
        measures = self._numbers(totals, balances, sizes)
        _write_json(self._folder / MEASURES, measures, sync_name=False)
        for name, content in (
            (CARD, card(self._recipe, measures).encode("utf-8", "replace")),
            (REPORT, page(f"training data on {self._recipe.problems}", measures)),
        ):
            with atomic_file(self._folder / name, sync_name=False) as file:
                file.write(content)
        for folder in (self._folder / DATA, self._folder):
            Disk().sync_directory(folder)  # all names are on the disk before the manifest vouches for them
        files = {
            f"{DATA}/{name}": sha for shards in self._shards.values() for name, sha in shards.files.items()
        }
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        _write_json(
            self._folder / MANIFEST, {"digest": digest, "recipe": self._context.digest, "files": files}
        )
        return Derived(self._folder, measures, digest)

    def _add(self, group: ProblemSamples, errors: Any) -> None:
        for unit, failure in group.failures:
            self._kinds[failure.kind] += 1
            row = {"kind": failure.kind, "message": failure.message, "problem": unit.problem}
            errors.write(_line(row | {"sampler": unit.sampler, "block": unit.block, "samples": unit.n}))
        self._measures.add(group)
        kept = {
            name: self._filters.keep(group.problem, samples)
            for name, samples in sorted(group.samples.items())
        }
        for name, shards in self._shards.items():
            for row in FORMATS[name].rows(self._context, group, kept):
                shards.add(row)

    def _numbers(
        self, totals: Totals, balances: Sequence[Balance], sizes: Mapping[str, Size]
    ) -> dict[str, Any]:
        recipe, filters = self._recipe, self._filters
        costs = {}
        for name in recipe.order:
            charge, spec = totals.of(name), recipe.samplers[name]
            costs[name] = {
                "samples": charge.samples,
                "prompt_tokens": charge.read,
                "written_tokens": charge.written,
                "verifier_tokens": charge.checked,
                "computed_tokens": charge.computed,
                "flops": price_of("flops", charge, spec, sizes[name]),
                "money": price_of("money", charge, spec, sizes[name]) if spec.price else None,
                "seconds": charge.seconds,
                "parameters": sizes[name].policy,
            }
        kept = {
            name: {
                "kept": filters.kept[name],
                "kept_right": filters.kept_right[name],
                "dropped": {reason: n for (who, reason), n in sorted(filters.dropped.items()) if who == name},
            }
            for name in recipe.order
        }
        return {
            **self._measures.to_json(recipe.sizes, seed=recipe.seed % 2**32),
            "match": {
                "by": recipe.match,
                "reference": recipe.reference_name,
                "balances": [
                    {
                        "sampler": b.sampler, "cost": b.cost, "budget": b.budget, "gap": b.gap,
                        "tolerance": b.tolerance, "held": b.held, "says": b.explain(),
                    }
                    for b in balances
                ],
            },
            "costs": costs,
            "filters": kept,
            "exports": {name: shards.rows for name, shards in self._shards.items()},
            "errors": dict(sorted(self._kinds.items())),
            "equalities": {"diversity": "normalised text", "diversity_steps": "set of normalised steps"},
        }  # fmt: skip


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode("ascii") + b"\n"


def _write_json(path: Path, data: Mapping[str, Any], *, sync_name: bool = True) -> None:
    with atomic_file(path, sync_name=sync_name) as file:
        file.write(json.dumps(data, indent=2, default=str).encode("ascii") + b"\n")
