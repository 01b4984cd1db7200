"""The model of a trillion parameters: its file, its page, and what is computed from rates."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "docs" / "configs" / "trillion-moe.json"
PAGE = (ROOT / "docs" / "trillion.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trillion", ROOT / "benchmarks" / "trillion.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trillion"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(benchmark: ModuleType) -> dict[str, Any]:
    return json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))


def test_the_tables_of_the_page_are_those_of_the_results(
    benchmark: ModuleType, results: dict[str, Any]
):
    """After a new run: ``python benchmarks/trillion.py table``."""
    wanted = benchmark.markdown(results)
    assert PAGE.partition("<!-- table -->\n")[2].partition("\n<!-- /table -->")[0] == wanted
    assert results["model"]["parameters"] > 10**12
    # The page is run by `test_guide`, and plans the model of the file: see below.
    assert f"{results['model']['parameters']:,} parameters\n" in PAGE
    assert f"\n{results['model']['tensors']} tensors planned, 0 left as they are\n" in PAGE
    host = results["host"]
    assert f"hosts of {host['cores']} such cores with a disk of {host['disk'] / 1e9:g} GB/s" in PAGE


def test_what_is_computed_follows_from_what_was_measured(
    benchmark: ModuleType, results: dict[str, Any]
):
    rates, host = benchmark.Rates(**results["rates"]), benchmark.Host(**results["host"])
    again = benchmark.outlook(2 * results["model"]["parameters"], rates, host)
    assert again == results["outlook"]


def test_twice_the_hosts_take_half_the_time_and_the_slower_part_decides(benchmark: ModuleType):
    rates = benchmark.Rates(1e9, 2e9, 2, 1e9, 1e9, 0.5e9, 10**9)
    one, eight, _ = benchmark.outlook(10**12, rates, benchmark.Host(10, 2e9, 100e9))
    assert one == {"hosts": 1, "each": 10**12, "memory": 100.0, "files": 500.0}  # by its disk
    assert eight["memory"] == pytest.approx(one["memory"] / 8)
    slow, *_ = benchmark.outlook(10**12, rates, benchmark.Host(2, 2e9, 100e9))
    assert slow["files"] == pytest.approx(1000.0)  # by its cores
    narrow, *_ = benchmark.outlook(10**12, rates, benchmark.Host(10, 2e9, 5e9))
    assert narrow["memory"] == pytest.approx(200.0)  # by its memory


def test_the_page_builds_the_model_of_the_file():
    transformers = pytest.importorskip("transformers")
    values = json.loads(CONFIG.read_text(encoding="utf-8"))
    (call,) = (
        node
        for block in PAGE.split("```python\n")[1:]
        for node in ast.walk(ast.parse(block.partition("```")[0]))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DeepseekV3Config"
    )
    given = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    shown = transformers.DeepseekV3Config(**given).to_dict()
    for name, value in values.items():
        if name not in ("architectures", "rope_parameters"):  # no shape depends on these
            assert shown[name] == value, name


SMALL = {
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
}


def test_a_small_model_of_the_class_goes_from_meta_to_a_forward(tmp_path: Path):
    """Its experts in torch's grouped product; its buffers, which no recipe knows, have values."""
    pytest.importorskip("transformers")
    from fanin import plan
    from fanin.targets import load

    path = tmp_path / "config.json"
    config = json.loads(CONFIG.read_text(encoding="utf-8")) | SMALL
    path.write_text(json.dumps(config), encoding="utf-8")
    target = load(f"hf:{path}", meta=True)
    assert all(p.is_meta for p in target.model.parameters())
    real = load(f"hf:{path}").model
    found = plan(target.model, target.batch)
    assert not found.untouched
    assert {a.parameter: a.std for a in found} == {
        a.parameter: a.std for a in plan(real, target.batch)
    }
    found.apply_(target.model, seed=0)
    buffers = dict(target.model.named_buffers())
    for name, expected in real.named_buffers():
        assert torch.equal(buffers.pop(name), expected), name
    assert not buffers
    assert torch.isfinite(target.model(**target.batch).loss)
