"""Trees of real searches as workloads for kernels: recorded, saved, loaded, and exported in flashinfer-bench's layout.

    python bench/workloads.py record [--policy tiny-wc --strategy dvts --n 32 ...]   writes workloads/NAME.json
    python bench/workloads.py export DIR                                             definitions/ and workloads/

A workload is the tree below the rows of the step in which they see most tokens: for each node its parent and its
tokens, and which nodes are being written. The export states each as paged decode of independent sequences that share
pages, the form in which kernels that know no tree can run it. Schema: flashinfer-bench's docs, "Definition" and
"Workload".
"""

from __future__ import annotations

import argparse
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_trees import Grown, Spec, grow_spec

FOLDER = Path(__file__).parent / "workloads"


@dataclass(frozen=True)
class Workload:
    """A tree of one decode step."""

    name: str
    source: str  # how it was made
    parents: list[int]  # of each node, before it; -1: a prompt
    tokens: list[int]  # of each node
    leaves: list[int]  # nodes that are being written

    @staticmethod
    def load(path: Path) -> Workload:
        return Workload(**json.loads(path.read_text()))

    def save(self, folder: Path = FOLDER) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.__dict__) + "\n")
        return path

    def grow(self, *, trees: int = 1) -> Grown:
        """The tree in a ``KVTree``; ``trees`` copies of it."""
        parents = [None if parent < 0 else str(parent) for parent in self.parents]
        spec: Spec = list(zip(map(str, range(len(parents))), parents, self.tokens, strict=True))
        return grow_spec(spec, [str(leaf) for leaf in self.leaves], trees=trees)


def saved() -> list[Workload]:
    """All that are stored beside this file."""
    return [Workload.load(path) for path in sorted(FOLDER.glob("*.json"))]


def record(name: str, options: dict[str, Any]) -> Workload:
    """Run a search and keep the tree of the step with most rows."""
    from wcse import Recipe, load_problems
    from wcse.solve import Models, solve

    recipe = Recipe.parse(options)
    models = Models.load(recipe)
    best: list[Any] = []

    def look(_: object) -> None:
        rows = [row.span for row in models.engine.rows if row.span.tokens]
        if sum(span.depth for span in rows) > sum(n for lineage in best for _, n in lineage):
            best[:] = [[(id(s), len(s.tokens)) for s in span.lineage()] for span in rows]

    solve(recipe, load_problems(recipe.problems), lambda _: None, on_progress=look, models=models)
    places: dict[int, int] = {}
    parents: list[int] = []
    tokens: list[int] = []
    for lineage in best:
        above = -1
        for node, length in lineage:
            if node not in places:
                places[node] = len(parents)
                parents.append(above)
                tokens.append(length)
            above = places[node]
    leaves = [places[lineage[-1][0]] for lineage in best]
    shown = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return Workload(name, shown, parents, tokens, leaves)


_REFERENCE = """import math

import torch


def run(q, k_cache, v_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale):
    batch, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    output = torch.zeros_like(q)
    lse = torch.full((batch, heads), -float("inf"), dtype=torch.float32, device=q.device)
    for b in range(batch):
        pages = kv_indices[int(kv_indptr[b]) : int(kv_indptr[b + 1])].long()
        tokens = (len(pages) - 1) * k_cache.shape[1] + int(kv_last_page_len[b])
        keys = k_cache[pages].flatten(0, 1)[:tokens].float()
        values = v_cache[pages].flatten(0, 1)[:tokens].float()
        for h in range(heads):
            kv = h // (heads // kv_heads)
            scores = keys[:, kv] @ q[b, h].float() * sm_scale
            lse[b, h] = torch.logsumexp(scores, 0) / math.log(2.0)
            output[b, h] = (torch.softmax(scores, 0) @ values[:, kv]).to(q.dtype)
    return {"output": output, "lse": lse}
"""


def definition(heads: int, kv_heads: int, dim: int) -> dict[str, Any]:
    """Paged decode with pages of 16 tokens."""
    cache = ["num_pages", "page_size", "num_kv_heads", "head_dim"]
    const = {"num_qo_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim, "page_size": 16}
    axes: dict[str, Any] = {name: {"type": "const", "value": value} for name, value in const.items()}
    axes |= {name: {"type": "var"} for name in ("batch_size", "num_pages", "len_indptr", "num_kv_indices")}
    return {
        "name": f"gqa_paged_decode_h{heads}_kv{kv_heads}_d{dim}_ps16",
        "op_type": "gqa_paged",
        "tags": ["stage:decode", "status:draft"],
        "description": "Decode of sequences whose pages are shared as the branches of a search tree share them. Pages "
        "belong to nodes, so a page before the last of a sequence may be partly filled: sequences here are cut to "
        "whole pages above their last node.",
        "axes": axes,
        "constraints": ["len_indptr == batch_size + 1", "num_kv_indices == kv_indptr[-1].item()"],
        "inputs": {
            "q": {"shape": ["batch_size", "num_qo_heads", "head_dim"], "dtype": "bfloat16"},
            "k_cache": {"shape": cache, "dtype": "bfloat16"},
            "v_cache": {"shape": cache, "dtype": "bfloat16"},
            "kv_indptr": {"shape": ["len_indptr"], "dtype": "int32"},
            "kv_indices": {"shape": ["num_kv_indices"], "dtype": "int32"},
            "kv_last_page_len": {"shape": ["batch_size"], "dtype": "int32"},
            "sm_scale": {"shape": None, "dtype": "float32"},
        },
        "outputs": {
            "output": {"shape": ["batch_size", "num_qo_heads", "head_dim"], "dtype": "bfloat16"},
            "lse": {"shape": ["batch_size", "num_qo_heads"], "dtype": "float32"},
        },
        "reference": _REFERENCE,
    }


def paged(grown: Grown) -> dict[str, torch.Tensor]:
    """A tree as pages of independent sequences. A partly filled page inside a path counts as full."""
    indices: list[np.ndarray] = []
    last = []
    for slots in grown.slots:
        pages = slots // 16
        keep = np.flatnonzero(np.diff(pages, prepend=-1))
        indices.append(pages[keep])
        last.append(len(slots) - keep[-1])
    pointer = np.cumsum([0, *map(len, indices)])
    return {
        "kv_indptr": torch.from_numpy(pointer.astype(np.int32)),
        "kv_indices": torch.from_numpy(np.concatenate(indices).astype(np.int32)),
        "kv_last_page_len": torch.tensor(last, dtype=torch.int32),
    }


def export(folder: Path, workloads: list[Workload], shapes: list[tuple[int, int, int]]) -> None:
    """``definitions/``, ``workloads/`` and the tensors in ``blob/``, for each shape (heads, kv heads, head size)."""
    from safetensors.torch import save_file

    for shape in shapes:
        about = definition(*shape)
        kind, name = about["op_type"], about["name"]
        places = [folder / part / kind for part in ("definitions", "workloads", f"blob/workloads/{name}")]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        (places[0] / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
        lines = []
        for workload in workloads:
            grown = workload.grow()
            tensors = paged(grown)
            path = places[2] / f"{workload.name}.safetensors"
            save_file(tensors, path)
            inputs: dict[str, Any] = {key: {"type": "random"} for key in ("q", "k_cache", "v_cache")}
            for key in tensors:
                inputs[key] = {
                    "type": "safetensors",
                    "path": f"./{path.relative_to(folder)}",
                    "tensor_key": key,
                }
            inputs["sm_scale"] = {"type": "scalar", "value": shape[2] ** -0.5}
            axes = {
                "batch_size": len(grown.slots),
                "num_pages": grown.pages,
                "len_indptr": len(grown.slots) + 1,
                "num_kv_indices": len(tensors["kv_indices"]),
            }
            one = {
                "uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name}/{workload.name}")),
                "axes": axes,
                "inputs": inputs,
            }
            lines.append(
                json.dumps({"definition": name, "workload": one, "solution": None, "evaluation": None})
            )
        (places[1] / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    recorder = actions.add_parser("record")
    for name, default in (
        ("name", "tiny-wc-dvts"),
        ("policy", "tiny-wc"),
        ("prm", "tiny-wc-prm"),
        ("problems", "gsm_symbolic:size=4,seed=20261122"),
        ("strategies", "dvts"),
    ):
        recorder.add_argument(f"--{name}", default=default)
    recorder.add_argument("--n", type=int, default=32)
    recorder.add_argument("--max-tokens", dest="max_tokens", type=int, default=256)
    exporter = actions.add_parser("export")
    exporter.add_argument("folder", type=Path)
    chosen = vars(parser.parse_args())
    if chosen.pop("action") == "export":
        export(chosen["folder"], saved(), [(32, 8, 64), (32, 8, 128)])
        return 0
    name = chosen.pop("name")
    chosen["strategies"] = tuple(chosen["strategies"].split(","))
    workload = record(name, chosen)
    grown = workload.grow()
    print(
        f"{workload.save()}: {len(workload.leaves)} rows, {len(workload.parents)} nodes, {grown.pages} pages"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
