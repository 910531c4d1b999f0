"""What fits in memory: the sums of ``wcse plan`` are what models take when they are loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from wcse import zoo
from wcse.cli import main
from wcse.engine.fit import Fit, Footprint, footprint, plan_memory
from wcse.engine.memory import KV_GIB, Memory
from wcse.models.kv_pool import KVPool
from wcse.models.load import load_model, read_spec
from wcse.recipe import Recipe
from wcse.reward.scorer import ImplicitPRM
from wcse.solve import Models, fit_of

F32 = torch.float32


@pytest.mark.parametrize("quantization", [None, "int8", "int4", "w8a8", "w4a8"])
def test_weights_are_those_of_the_loaded_model(quantization: Any) -> None:
    spec, path = read_spec("tiny-wc")
    assert str(path) == str(zoo.path("tiny-wc"))
    kinds = {"dtype": F32, "kv_dtype": F32, "quantization": quantization}
    found = footprint(spec, role="policy", name="tiny-wc", rows=1, **kinds)
    loaded = load_model("tiny-wc", quantization=quantization).decoder
    assert found.weights == pytest.approx(loaded.weight_bytes, rel=0.03)
    assert found.page == KVPool.page_bytes(spec) == loaded.pool(1).bytes_per_page


def test_a_fit_counts_pages_and_solutions() -> None:
    models = (Footprint("policy", "a", 100, 10, 8), Footprint("prm", "b", 200, 20, 24))
    fit = Fit("cpu", total=10_000, free=5_000, kv=3_200, models=models)
    assert (fit.pages, fit.kv_of(models[0]), fit.kv_of(models[1])) == (100, 800, 2400)
    assert fit.fits and not Fit("cpu", 10_000, 3_000, 3_200, models).fits
    # 2 pages of prompt and 4 x 3 of solutions: seven problems; two pages are left.
    assert fit.solutions(20, 40, each=4) == 28
    assert Fit("cpu", 0, 0, 32 * 6, models).solutions(20, 40, each=4) == 1
    assert plan_memory("cpu", models, kv_gib=0.5).kv == 2**29


def test_a_fit_is_the_budget_that_models_share() -> None:
    recipe = Recipe.parse(
        {
            "policy": "tiny-wc",
            "prm": "tiny-wc-prm",
            "problems": "none",
            "strategies": ("best_of_n",),
            "kv_memory_gb": 0.01,
        }
    )
    fit = fit_of(recipe, scored=True)
    models = Models.load(recipe)
    assert isinstance(models.scorer, ImplicitPRM)
    parts = (models.scorer.model, models.scorer.reference)
    memory = models.engine.runner.memory
    assert fit.kv == memory.size and all(part.runner.memory is memory for part in parts)
    runners = [models.engine.runner, *(part.runner for part in parts)]
    assert [model.page for model in fit.models] == [runner.page_bytes for runner in runners]
    unlimited = fit_of(recipe.model_copy(update={"kv_memory_gb": None}), scored=True)
    assert unlimited.kv == Memory.gib(KV_GIB).size


def test_plan_prints_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--policy", "tiny-wc", "--prm", "tiny-wc-prm", "--kv-memory-gb", "0.25"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "policy tiny-wc",
        "prm tiny-wc-prm",
        "prm's reference tiny-wc",
        "0.25 GiB",
        "pages of 16 tokens",
        "these are one pool: blocks of 0.09 MiB go to the model that needs them",
        "policy 5461, prm 5461, prm's reference 5461",
    ):
        assert part in shown
    assert main(["plan", "--policy", "tiny-wc", "--kv-memory-gb", "1000000"]) == 1
    assert "It does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt-tokens", "0"], "prompt_tokens=0: give a positive number"),
        (["--device", "tpu"], "device='tpu'"),
        (["--kv-cache-dtype", "fp8"], "kv_cache_dtype='fp8' needs a GPU"),
        (["--dtype", "bfloat16"], "dtype='bfloat16' is not supported on the CPU"),
        (["--quantization", "int3"], "quantization='int3'"),
    ],
)
def test_plan_refuses(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--policy", "tiny-wc", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the suite would run")
def test_parts_of_the_gpu_suite_need_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", "--parts", "rates"]) == 2
    assert "parts='rates': torch" in capsys.readouterr().err
