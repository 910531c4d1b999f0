"""The policy file: what ``wcse optimal`` found, for ``strategy="auto"``. JSON; knows no engine.

It is of use with the models and the difficulty measure that it was made with only; anything else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from wcse.data.disk import atomic_file
from wcse.data.record import SAMPLERS
from wcse.optimal.difficulty import Difficulty
from wcse.optimal.fit import Table
from wcse.optimal.grid import Cell
from wcse.search import STRATEGIES, SearchConfig, parse_strategy
from wcse.search.auto import FEATURES, Choice, Choices
from wcse.types import WcseError

FORMAT = 2


def save(
    path: Path,
    table: Table,
    difficulty: Difficulty,
    *,
    agg_strategy: str,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> None:
    """Write the policy file of a fit.

    Args:
        agg_strategy: of the verifier's scores, in force in the run.
        recipe, inputs: the header's of the run it was fitted on.

    Raises:
        WcseError: the difficulty needs gold answers, so nothing could use the file; or it cannot be written.
    """
    if difficulty.kind not in FEATURES:
        raise WcseError(
            f"difficulty={difficulty.kind} needs gold answers and cannot be used on new problems; "
            f"fit with difficulty={' or '.join(FEATURES)}"
        )
    data = {
        "format": FORMAT,
        "models": {
            name: {"name": recipe.get(name), "fingerprint": inputs.get(name)} for name in ("policy", "prm")
        },
        "difficulty": {
            "feature": difficulty.kind,
            "samples": difficulty.samples,
            "agg_strategy": agg_strategy,
        },
        "edges": list(table.edges),
        "budgets": {
            str(n): {"probed": column.probed, "strategies": [_spelled(cell) for cell in column.cells]}
            for n, column in table.choices.items()
        },
    }
    try:
        with atomic_file(path) as file:
            file.write(json.dumps(data, indent=2).encode("ascii") + b"\n")
    except OSError as error:
        raise WcseError(f"{str(path)!r}: cannot be written: {error.strerror or error}") from error


def _spelled(cell: Cell) -> str:
    """A cell's strategy with its N: another run's own n must not stand in for it."""
    spec = parse_strategy(cell.strategy)
    return str(replace(spec, options={"n": cell.n, **spec.options}))


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy file that is known to belong to the models at hand.

    Attributes:
        path: for messages.
        budgets: that it has a table for, rising.
    """

    path: str
    budgets: tuple[int, ...]
    data: Mapping[str, Any]

    def choices(self, n: int, base: SearchConfig) -> Choices:
        """The choices at budget ``n``: those of the largest budget in the file that is not above it.

        Args:
            base: the run's search settings.

        Raises:
            WcseError: not such a file, an unknown difficulty feature, or ``n`` below the smallest budget.
        """
        path = self.path
        try:
            feature = self.data["difficulty"]
            if feature["feature"] not in FEATURES:
                raise WcseError(
                    f"strategy_policy={path!r}: difficulty feature {feature['feature']!r} cannot be measured "
                    f"here; use a file made with {' or '.join(FEATURES)}"
                )
            fitting = [budget for budget in self.budgets if budget <= n]
            if not fitting:
                raise WcseError(
                    f"strategy_policy={path!r}: n={n} is below its smallest budget {self.budgets[0]}; raise n"
                )
            column = self.data["budgets"][str(fitting[-1])]
            specs, probed = column["strategies"], column["probed"]
            edges = tuple(float(edge) for edge in self.data["edges"]) if probed else ()
            if len(specs) != len(edges) + 1:
                raise WcseError(
                    f"strategy_policy={path!r}: {len(specs)} bins but {len(edges)} edges; make it again"
                )
            agg = base.agg_strategy or feature["agg_strategy"]
            bins = tuple(_choice(text, replace(base, agg_strategy=agg)) for text in specs)
            samples = int(feature["samples"]) if probed else 0
            # The edges part values of the file's own aggregation, whatever the searches rank by.
            return Choices(
                fitting[-1], feature["feature"], samples, str(feature["agg_strategy"]), edges, bins
            )
        except WcseError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _no_policy_file(path, error) from error


def read_policy(path: str, *, names: Mapping[str, str | None], inputs: Mapping[str, str]) -> PolicyFile:
    """Open a policy file.

    Args:
        names, inputs: the run's models and their fingerprints, keys "policy" and "prm".

    Raises:
        WcseError: no file, not such a file, or one for other models.
    """
    data = _read(Path(path))
    try:
        _same_models(path, data["models"], names, inputs)
        budgets = tuple(sorted(int(key) for key in data["budgets"]))
        if not budgets or budgets[0] < 1:
            raise KeyError("budgets")
        return PolicyFile(path, budgets, data)
    except WcseError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_policy_file(path, error) from error


def _no_policy_file(path: str, error: Exception) -> WcseError:
    return WcseError(f"strategy_policy={path!r}: not a policy file of wcse optimal ({error})")


def _choice(text: str, base: SearchConfig) -> Choice:
    spec = parse_strategy(text)
    entry, config = STRATEGIES[spec.name], spec.config(base)
    entry.check(config)
    run = None if spec.name in SAMPLERS else partial(_run, entry.run, config)
    return Choice(run, entry.selector)


def _run(run: Any, config: SearchConfig, root: Any) -> Any:
    return run(root, config)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WcseError(
            f"strategy_policy={str(path)!r}: {error.strerror}; make one with wcse optimal"
        ) from error
    except ValueError as error:
        raise WcseError(
            f"strategy_policy={str(path)!r}: not JSON; make it again with wcse optimal"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise WcseError(f"strategy_policy={str(path)!r}: not a policy file of this version of wcse optimal")
    return data


def _same_models(
    path: str,
    models: Mapping[str, Mapping[str, str]],
    names: Mapping[str, str | None],
    inputs: Mapping[str, str],
) -> None:
    for field in ("policy", "prm"):
        made, now = models[field], inputs.get(field)
        if made["fingerprint"] != now or (now is None and made["name"] != names.get(field)):
            raise WcseError(
                f"strategy_policy={path!r} was made for {field}={made['name']!r}, and the run has "
                f"{field}={names.get(field)!r} with other content; make one for these models with wcse optimal"
            )


def tree_budgets(budgets: Sequence[int], samples: int, width: int) -> list[int]:
    """Budgets that tree searches have to be run at: whole ones, and what the probes leave of each.

    Budgets below ``width`` have none.

    Raises:
        WcseError: a larger one that is no multiple of ``width``, at which no tree search could be compared.
    """
    for n in budgets:
        if n > width and n % width:
            raise WcseError(
                f"budgets: {n} is not divisible by beam_width={width}; give multiples of it, or another beam_width"
            )
    left = [(n - samples) // width * width for n in budgets]
    return sorted({n for n in (*budgets, *left) if n >= width and n % width == 0})
