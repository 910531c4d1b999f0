"""What every page is made of: files of this package, placeholders, and hashes for the page's own policy (CSP)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files


def asset(name: str) -> str:
    """The text of a file beside this one."""
    return files("wcse.report").joinpath(name).read_text(encoding="utf-8")


def template(body: str, *, controls: str = "") -> str:
    """The frame that every page has, around a body and beside a header's controls; both may hold placeholders."""
    return asset("page.html").replace("{{controls}}", controls).replace("{{body}}", body)


def source(text: str) -> str:
    """The CSP source of an inline block: its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace ``{{name}}``; one pass, so a value that looks like a placeholder stays as it is."""
    parts = template.split("{{")
    filled = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition("}}")
        filled += [values[name], rest]
    return "".join(filled)
