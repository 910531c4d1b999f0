"""Everything that is derived from a journal: two Parquet tables, the summary, the report. Needs no model."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wcse.data.disk import atomic_file
from wcse.data.journal import Header, read_header, read_records
from wcse.data.summary import Summary
from wcse.data.tables import nodes_table, solutions_table
from wcse.report.page import Report
from wcse.types import WcseError

SOLUTIONS = "solutions.parquet"
NODES = "nodes.parquet"
SUMMARY = "summary.json"
REPORT = "report.html"


@dataclass(frozen=True)
class Outputs:
    """The written files and the summary that they hold."""

    directory: Path
    summary: dict[str, Any]

    @property
    def report(self) -> Path:
        return self.directory / REPORT


def write_outputs(directory: str | Path) -> Outputs:
    """Derive all outputs from the journal in ``directory`` and put them beside it; each replaced whole or not
    at all.

    Raises:
        WcseError: there is no journal or it cannot be read, or the directory cannot be written.
    """
    folder = Path(directory)
    header = read_header(folder)
    try:
        summary = _write(folder, header)
    except OSError as error:
        raise WcseError(
            f"{str(folder)!r}: the outputs cannot be written: {error.strerror or error}; the journal is intact: "
            f"free some space or make it writable, then run: wcse report {folder}"
        ) from error
    return Outputs(folder, summary)


def run_digest(header: Header) -> str:
    """A short name of what was run: equal for equal recipes and inputs."""
    content = json.dumps([dict(header.recipe), dict(header.inputs)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _write(folder: Path, header: Header) -> dict[str, Any]:
    run = run_digest(header)
    summary = Summary(header, run)
    page = Report()
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(atomic_file(folder / name))
            for name in (SOLUTIONS, NODES, SUMMARY, REPORT)
        }
        with (
            solutions_table(files[SOLUTIONS], header.recipe["n"]) as solutions,
            nodes_table(files[NODES], run) as nodes,
        ):
            for record in read_records(folder):
                solutions.add(record)
                nodes.add(record)
                summary.add(record)
                page.add(record)
        numbers = summary.to_json()
        files[SUMMARY].write(json.dumps(numbers, indent=2, allow_nan=False).encode("ascii") + b"\n")
        page.write(files[REPORT], numbers)
    return numbers
