"""Problems from a one-line specification: a reasoning-gym task, a file, or a Hugging Face dataset.

Knows nothing of models, prompt templates or search. Optional packages are imported when a specification
needs them. The gold answer is only carried; metrics alone may read it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from wcse.answers import extract_answer
from wcse.names import suggest
from wcse.types import Problem, WcseError

PROMPT_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMN = "answer"
ID_COLUMNS = ("id", "unique_id")
FILE_SUFFIXES = (".jsonl", ".json", ".parquet")

_FORMS = (
    "a reasoning-gym task (gsm_symbolic:size=100,seed=7), a .jsonl, .json or .parquet file, "
    "or a Hugging Face dataset (owner/name:split=test)"
)


Refused = Callable[[WcseError], None]
"""Hears of a row that cannot be used; raises, or returns to go on without it."""


def load_problems(spec: str, *, limit: int | None = None, on_bad_row: Refused | None = None) -> list[Problem]:
    """Read the problems that ``spec`` names, in a fixed order with unique, stable ids.

    Args:
        spec: a reasoning-gym task with options, ``gsm_symbolic:size=100,seed=7``; a JSONL, JSON or Parquet
            file with a ``problem``, ``question`` or ``prompt`` column and an ``answer`` column, or, as in MATH, a
            ``solution`` that ends in a ``\\boxed{}`` answer; or a Hugging
            Face dataset id with options, ``owner/name:split=test,config=main``. A worked answer that ends in
            ``#### final``, as in GSM8K, gives ``final``.
        limit: keep only the first problems.
        on_bad_row: hears the error of each row that cannot be used, which is then left out; None raises it.

    Raises:
        WcseError: anything wrong with the specification or a row; the message names the row and the fix.
    """
    if limit is not None and limit < 1:
        raise WcseError(f"limit={limit}: must be at least 1")
    if _names_a_path(spec):
        path = Path(spec)
        rows = _read_file(path)
        problems = _from_rows(rows, on_bad_row, prefix=path.stem, source=str(path), limit=limit)
    else:
        name, options = _parse_spec(spec)
        if "/" in name:
            problems = _from_hub(name, options, limit, on_bad_row)
        else:
            problems = _from_reasoning_gym(name, options, limit)
    if not problems:
        raise WcseError(f"problems {spec!r}: no problems in it")
    return problems


def _names_a_path(spec: str) -> bool:
    """A file's suffix, a file, or a path with a folder in it. A folder that is called like a task is not one."""
    path = Path(spec)
    try:
        return path.suffix.lower() in FILE_SUFFIXES or path.is_file() or ("/" in spec and path.exists())
    except (OSError, ValueError):  # too long, or a NUL in it
        return False


def _parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``name:key=value,key=value``."""
    name, _, tail = spec.partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise WcseError(f"problems {spec!r}: not understood; give {_FORMS}")
    options: dict[str, str] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise WcseError(f"problems {spec!r}: option {part!r} is not key=value")
        if key.strip() in options:
            raise WcseError(f"problems {spec!r}: option {key.strip()!r} is given twice")
        options[key.strip()] = value.strip()
    return name, options


# --- reasoning-gym ------------------------------------------------------------------------------------------


def _from_reasoning_gym(task: str, options: Mapping[str, str], limit: int | None) -> list[Problem]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise WcseError(
            f"problems {task!r}: no such file, and reasoning-gym tasks need an extra package: "
            f"pip install 'wcse[problems]' ({error})"
        ) from error
    if task not in DATASETS:
        close = suggest(task, DATASETS)
        raise WcseError(
            f"problems {task!r}: neither a file nor a reasoning-gym task{close}; give {_FORMS}; "
            f"known tasks: {', '.join(sorted(DATASETS))}"
        )
    config = _gym_config(task, options, known=DATASETS[task][1].__dataclass_fields__)
    try:
        dataset = reasoning_gym.create_dataset(task, **config)
    except (AssertionError, TypeError, ValueError) as error:  # what the tasks' own validation raises
        given = ", ".join(f"{key}={value!r}" for key, value in config.items())
        raise WcseError(f"problems {task!r}: refused by the task ({given}): {_one_line(error)}") from error
    seed = config["seed"]
    return [
        Problem(
            id=f"{task}-seed{seed}-{index}",
            prompt=str(entry["question"]),
            answer=_gold(entry["answer"], where=f"{task} item {index}"),
            meta={"task": task, "index": index, **_worked(entry)},
        )
        for index, entry in enumerate(islice(_items(dataset), limit))
    ]


def _worked(entry: Any) -> dict[str, str]:
    """How the task itself arrives at the answer, where it says so: a worked solution or an expression."""
    metadata = entry.get("metadata") or {}
    names = {"answer_cot": "solution", "expression": "expression"}
    return {new: metadata[old] for old, new in names.items() if isinstance(metadata.get(old), str)}


def _items(dataset: Any) -> Iterator[Any]:
    # By index, not by the dataset's own iterator: item i must not depend on who read the ones before it.
    return (dataset[index] for index in range(len(dataset)))


def _gym_config(task: str, options: Mapping[str, str], known: Iterable[str]) -> dict[str, Any]:
    config: dict[str, Any] = {"size": 100, "seed": 0}
    for key, text in options.items():
        if key not in known:
            raise WcseError(
                f"problems {task!r}: unknown option {key!r}{suggest(key, known)}; "
                f"known: {', '.join(sorted(known))}"
            )
        try:
            config[key] = json.loads(text)
        except ValueError:
            config[key] = text
    for key, least in (("size", 1), ("seed", 0)):
        if type(config[key]) is not int or config[key] < least:
            raise WcseError(
                f"problems {task!r}: {key}={config[key]} must be a whole number of at least {least}"
            )
    return config


# --- files --------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file as (where, row); ``where`` is what an error message should point at."""
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "no such file"
        raise WcseError(f"problems {str(path)!r}: {problem}; give {_FORMS}")
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise WcseError(f"problems {str(path)!r}: unknown file type; use {', '.join(FILE_SUFFIXES)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise WcseError(f"problems {str(path)!r}: cannot be read: {error.strerror or error}") from error


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path} line {number}"
            if line.strip():
                try:
                    yield where, _parse_json(line, where)
                except WcseError as error:
                    yield where, error  # of this line alone: what to do about it is not the reader's affair


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    rows = _parse_json(path.read_bytes(), str(path))
    if not isinstance(rows, list):
        raise WcseError(
            f"problems {str(path)!r}: a .json file must hold a list of rows; use .jsonl for one row a line"
        )
    for number, row in enumerate(rows, start=1):
        yield f"{path} row {number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        batches = table.iter_batches(batch_size=256)
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except pyarrow.ArrowException as error:
        raise WcseError(f"problems {str(path)!r}: not a readable Parquet file: {_one_line(error)}") from error


def _parse_json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise WcseError(f"{where}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise WcseError(f"{where}: not valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise WcseError(f"{where}: JSON nested too deeply") from error


# --- Hugging Face datasets ----------------------------------------------------------------------------------


def _from_hub(
    name: str, options: Mapping[str, str], limit: int | None, refused: Refused | None
) -> list[Problem]:
    known = ("split", "config", "revision")
    for key in options:
        if key not in known:
            raise WcseError(
                f"problems {name!r}: unknown option {key!r}{suggest(key, known)}; known: {', '.join(known)}"
            )
    try:
        import datasets
    except ImportError as error:
        raise WcseError(
            f"problems {name!r}: no such file, and Hugging Face datasets need an extra package: "
            "pip install datasets"
        ) from error
    split = options.get("split", "test")
    try:
        rows = datasets.load_dataset(
            name, options.get("config"), split=split, revision=options.get("revision")
        )
    except Exception as error:
        # The hub client raises its own errors, those of its HTTP library and of its file formats.
        raise WcseError(
            f"problems {name!r} (split {split}): could not be loaded: {_one_line(error)}; "
            "check the id and the network, or download it and give the .jsonl or .parquet file"
        ) from error
    numbered = ((f"{name} row {number}", row) for number, row in enumerate(rows, start=1))
    return _from_rows(numbered, refused, prefix=name.replace("/", "-"), source=name, limit=limit)


# --- rows ---------------------------------------------------------------------------------------------------


def _from_rows(
    rows: Iterable[tuple[str, Any]], refused: Refused | None, *, prefix: str, source: str, limit: int | None
) -> list[Problem]:
    problems: list[Problem] = []
    ids: set[str] = set()
    for index, (where, row) in enumerate(islice(rows, limit)):
        try:
            problem = _from_row(row, where, ids, default_id=f"{prefix}-{index}", source=source)
        except WcseError as error:
            if refused is None:
                raise
            refused(error)
            continue
        problems.append(problem)
        ids.add(problem.id)
    return problems


def _from_row(row: Any, where: str, ids: set[str], *, default_id: str, source: str) -> Problem:
    if isinstance(row, WcseError):
        raise row
    if not isinstance(row, Mapping):
        raise WcseError(f"{where}: a row must be an object with named columns, not {type(row).__name__}")
    present = ", ".join(map(str, row)) or "none"
    column = next((name for name in PROMPT_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise WcseError(f"{where}: no {' or '.join(PROMPT_COLUMNS)} column; columns present: {present}")
    worked = _worked_answer(row)
    if worked is None:
        raise WcseError(f"{where}: no {ANSWER_COLUMN} column (or it is null); columns present: {present}")
    prompt = row[column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise WcseError(f"{where}: {column} must be non-empty text, not {_show(prompt)}")
    meta = {
        key: value for key, value in row.items() if key not in (column, ANSWER_COLUMN) and _is_plain(value)
    }
    if isinstance(worked, str) and "####" in worked:
        meta.setdefault("solution", worked)
    name = next((str(row[key]) for key in ID_COLUMNS if isinstance(row.get(key), str | int)), default_id)
    return Problem(
        id=_unique(name, ids),
        prompt=prompt,
        answer=_gold(worked, where=where),
        meta={"source": source, **meta},
    )


def _worked_answer(row: Mapping[str, Any]) -> Any:
    """The answer column; in sets without one (MATH) what the worked solution puts into its last box."""
    answer, solution = row.get(ANSWER_COLUMN), row.get("solution")
    return extract_answer(solution) if answer is None and isinstance(solution, str) else answer


def _gold(answer: Any, *, where: str) -> str:
    """The final answer as text; a worked answer keeps only what follows its last ``####``."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise WcseError(f"{where}: answer must be text or a number, not {_show(answer)}")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise WcseError(f"{where}: answer is {answer}")
    text = str(answer).rpartition("####")[2].strip()
    if not text:
        raise WcseError(f"{where}: answer is empty")
    return text


def _unique(name: str, taken: set[str]) -> str:
    """``name``, or ``name#2``, ``name#3``, ... when it is taken."""
    candidate, ordinal = name, 1
    while candidate in taken:
        ordinal += 1
        candidate = f"{name}#{ordinal}"
    return candidate


def _is_plain(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, str | bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


def _show(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:40]}{'...' if len(text) > 40 else ''}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
