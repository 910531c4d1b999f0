"""Uploads a data set. Nothing here runs unless a name on the hub was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wcse.types import WcseError


def push(directory: Path, formats: Sequence[str], name: str, *, private: bool = True) -> None:
    """Push each format as a configuration of the data set ``name``; private unless asked otherwise.

    Raises:
        WcseError: the package is missing, or the hub refuses.
    """
    try:
        import datasets
    except ImportError as error:
        raise WcseError("push_to_hub needs an extra package: pip install 'wcse[hub]'") from error
    for name_of_format in formats:
        files = sorted(str(path) for path in (directory / "data").glob(f"{name_of_format}-*.parquet"))
        try:
            rows = datasets.load_dataset("parquet", data_files=files, split="train")
            rows.push_to_hub(name, config_name=name_of_format, private=private)
        except Exception as error:  # the hub's client raises its own and its HTTP library's errors
            raise WcseError(
                f"push_to_hub={name!r}: {type(error).__name__}: {' '.join(str(error).split())[:300]}; "
                f"the files are in {directory / 'data'}"
            ) from error
