"""The command line's plan and init: what they show, write, refuse, and leave alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

import fanin
from fanin.checkpoint import RECIPE, SEED, origin
from fanin.cli import cli
from fanin.targets import load

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSIFIER = f"{EXAMPLES / 'classifier.py'}:build"
OTHER = f"{EXAMPLES / 'zero_start.py'}:build"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    assert run("plan", CLASSIFIER, "-o", path).exit_code == 0
    return path


class TestPlan:
    def test_the_table_names_scheme_std_and_reason(self) -> None:
        result = run("plan", CLASSIFIER)
        assert result.exit_code == 0
        assert result.stderr == ""
        assert "he_normal" in result.stdout
        assert "relu before it" in result.stdout

    def test_the_recipe_is_the_plan(self, recipe: Path) -> None:
        target = load(CLASSIFIER)
        written = fanin.Plan.from_toml(recipe.read_text(encoding="utf-8"))
        assert written == fanin.plan(target.model, target.batch)

    def test_stdout_holds_the_recipe_alone(self) -> None:
        result = run("plan", CLASSIFIER, "-o", "-")
        assert len(fanin.Plan.from_toml(result.stdout)) == 10

    def test_json_is_the_plan_as_data(self) -> None:
        result = run("plan", CLASSIFIER, "--scheme", "he_normal", "--json", "-")
        plan = json.loads(result.stdout)
        assert plan["scheme"] == "he_normal"
        assert {a["parameter"] for a in plan["assignments"]} >= {"0.weight", "8.bias"}

    def test_arguments_reach_the_scheme(self) -> None:
        result = run("plan", CLASSIFIER, "--scheme", "normal", "--gain", "0.5", "--json", "-")
        (weight,) = [
            a for a in json.loads(result.stdout)["assignments"] if "0.weight" in a.values()
        ]
        assert weight["std"] == 0.5
        arguments = ("--scheme", "variance_scaling", "--set", "mode=fan_out", "--set", "scale=2.0")
        plan = json.loads(run("plan", CLASSIFIER, *arguments, "--json", "-").stdout)
        assert plan["assignments"][0]["std"] == pytest.approx((2 / (16 * 9)) ** 0.5)

    def test_meta_needs_no_memory(self) -> None:
        result = run("plan", CLASSIFIER, "--meta", "--json", "-")
        assert result.exit_code == 0, result.stderr
        assert len(json.loads(result.stdout)["assignments"]) == 10

    def test_diff_tells_two_recipes_apart(self, recipe: Path, tmp_path: Path) -> None:
        same = run("plan", "--diff", recipe, recipe)
        assert (same.exit_code, same.stdout.strip()) == (0, "no difference")
        other = tmp_path / "other.toml"
        run("plan", CLASSIFIER, "--scheme", "xavier_normal", "-o", other)
        result = run("plan", "--diff", recipe, other)
        assert result.exit_code == 1
        assert "0.weight" in result.stdout
        assert "xavier_normal" in result.stdout


class TestInit:
    def test_the_file_holds_the_drawn_model_its_recipe_and_seed(
        self, recipe: Path, tmp_path: Path
    ) -> None:
        place = tmp_path / "start.safetensors"
        result = run("init", CLASSIFIER, "--recipe", recipe, "--seed", 3, "-o", place)
        assert result.exit_code == 0, result.stderr
        target = load(CLASSIFIER)
        written, seed = origin(place)
        fanin.Plan.of(written).apply_(target.model, seed)
        assert seed == 3
        state = target.model.state_dict()
        kept = load_file(place)
        assert set(kept) == set(state)
        assert all(torch.equal(kept[name], state[name]) for name in state)

    def test_a_recipe_and_its_scheme_make_the_same_file(self, recipe: Path, tmp_path: Path) -> None:
        places = [tmp_path / name for name in ("a", "b")]
        run("init", CLASSIFIER, "--recipe", recipe, "-o", places[0])
        run("init", CLASSIFIER, "-o", places[1])
        first, second = map(load_file, places)
        assert all(torch.equal(first[name], second[name]) for name in second)

    def test_the_same_start_is_the_same_file(self, tmp_path: Path) -> None:
        """Also its metadata, which safetensors writes in a random order."""
        place, found = tmp_path / "start.safetensors", set()
        for _ in range(6):
            assert run("init", CLASSIFIER, "-o", place).exit_code == 0
            found.add(place.read_bytes())
        assert len(found) == 1

    def test_what_cannot_be_written_leaves_the_file(self, recipe: Path, tmp_path: Path) -> None:
        place = tmp_path / "start.safetensors"
        place.write_text("mine")
        result = run("init", OTHER, "--recipe", recipe, "-o", place)
        assert result.exit_code == 2
        assert place.read_text() == "mine"
        assert {p.name for p in tmp_path.iterdir()} == {"recipe.toml", "start.safetensors"}

    def test_a_file_without_a_recipe_has_no_origin(self, tmp_path: Path) -> None:
        place = tmp_path / "model.safetensors"
        place.write_bytes(b"nothing")
        with pytest.raises(fanin.FaninError, match="cannot be read"):
            origin(place)
        assert (RECIPE, SEED) == ("fanin.recipe", "fanin.seed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "give a TARGET, or --diff"),
        (["plan", CLASSIFIER, "--scheme", "he_norml"], "did you mean he_normal"),
        (["plan", CLASSIFIER, "--scheme", "normal", "--gain", "nan"], "gain: nan"),
        (["plan", CLASSIFIER, "--set", "omega"], "is not NAME=VALUE"),
        (["plan", CLASSIFIER, "--scheme", "he_normal", "--set", "omega=3"], "no such argument"),
        (["plan", CLASSIFIER, "--scheme", "lora"], "low-rank adapters"),
        (["plan", CLASSIFIER, "--diff", "a.toml", "b.toml"], "no TARGET"),
        (["plan", "--diff", "a.toml", "b.toml", "--json", "-"], "two recipes and no --json"),
        (["plan", CLASSIFIER, "-o", "-", "--json", "-"], "cannot both go to stdout"),
        (["plan", "--diff", "no.toml", "no.toml"], "no.toml: cannot be read"),
        (["plan", CLASSIFIER, "-o", "no/folder/recipe.toml"], "cannot be written"),
        (["init", CLASSIFIER], "Missing option"),
        (["init", CLASSIFIER, "-o", "-"], "a checkpoint needs a file"),
        (["init", CLASSIFIER, "--out", ""], "names no folder"),
        (["init", CLASSIFIER, "-o", "no/folder/x"], "cannot be written"),
        (["init", CLASSIFIER, "--recipe", "r", "--scheme", "auto", "-o", "x"], "not both"),
        (["explain", "he_norml"], "did you mean he_normal"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_recipe_for_another_model_names_what_does_not_fit(recipe: Path, tmp_path: Path) -> None:
    result = run("init", OTHER, "--recipe", recipe, "-o", tmp_path / "x")
    assert result.exit_code == 2
    for word in ("another model", "0.weight", "16"):
        assert word in result.stderr


@pytest.mark.parametrize("name", ["he_normal", "kaiming_normal", "residual_scaling", "lsuv"])
def test_a_scheme_is_explained_with_formula_time_and_source(name: str) -> None:
    result = run("explain", name)
    assert result.exit_code == 0
    for part in ("Formula", "When to use it", "Source"):
        assert part in result.stdout


def test_the_automatic_choice_is_explained_by_its_table() -> None:
    shown = run("explain", "auto").stdout
    assert all(scheme in shown for scheme in ("looks_linear", "orthogonal", "forget_gate_bias"))


def test_all_schemes_are_listed() -> None:
    listed = run("explain").stdout
    assert all(name in listed for name in fanin.schemes)
