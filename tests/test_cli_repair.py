"""The command line's repair: exit status, what it shows, and which files it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from page_reader import Page
from safetensors.torch import load_file
from torch import Tensor, nn

import fanin
from fanin.checkpoint import origin
from fanin.cli import cli
from fanin.targets import load

EXAMPLES = Path(__file__).parent.parent / "examples"
SOUND = f"{EXAMPLES / 'classifier.py'}:build"
FAULTY = f"{EXAMPLES / 'zero_start.py'}:build"

FACTORIES = """
import torch
from torch import nn
from torch.nn import functional as F


class Logarithm(nn.Module):
    def forward(self, x):
        return torch.log(x)


def loss(samples):
    labels = torch.arange(samples) % 4
    return lambda output: F.cross_entropy(output, labels)


def dead():
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
    nn.init.constant_(model[0].bias, -100.0)
    return model, torch.randn(32, 10), loss(32)


def hopeless():
    model = nn.Sequential(nn.Linear(10, 16), Logarithm(), nn.Linear(16, 4))
    return model, torch.randn(32, 10), loss(32)


def half():
    # A frozen layer in its flat part, which stays, and a dead one, which does not.
    layers = [nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
    model = nn.Sequential(*layers)
    nn.init.normal_(model[0].weight, std=10.0)
    model[0].requires_grad_(False)
    nn.init.constant_(model[2].bias, -100.0)
    return model, torch.randn(32, 10), loss(32)


def widened():
    # Units 8 to 15 are copies of units 0 to 7, and send half: a warning.
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = model[0].weight[:8], model[0].bias[:8]
        model[2].weight[:, 8:] = model[2].weight[:, :8]
    return model, torch.randn(32, 10), loss(32)


def unwritten():
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 4))
    model[2].weight = nn.Parameter(torch.empty(4, 16))
    return model, torch.randn(32, 10), loss(32)


def raising():
    return nn.Sequential(nn.Linear(10, 4), nn.Linear(5, 4)), torch.randn(8, 10)
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture
def factory(tmp_path: Path):
    """The targets of FACTORIES by name."""
    place = tmp_path / "factories.py"
    place.write_text(FACTORIES)
    return lambda name: f"{place}:{name}"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for what is written."""
    made = tmp_path / "out"
    made.mkdir()
    return made


def written(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


class TestStatus:
    def test_a_mended_model_is_status_0(self, factory) -> None:
        result = run("repair", factory("dead"))
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        for part in ("1 of 4 parameters changed", "32 of", "0.bias", "no error after"):
            assert part in result.stdout

    def test_a_sound_model_is_status_0_and_nothing_is_changed(self) -> None:
        result = run("repair", SOUND)
        assert result.exit_code == 0
        assert "nothing to mend" in result.stdout

    def test_errors_that_are_left_are_status_1(self, factory) -> None:
        for name, told in (("hopeless", "not the cause of N403"), ("half", "errors left: P206")):
            result = run("repair", factory(name))
            assert result.exit_code == 1
            assert told in result.stdout

    def test_a_model_that_cannot_run_is_status_2_and_one_line(self, factory) -> None:
        result = run("repair", factory("raising"))
        assert result.exit_code == 2
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr
        assert "Traceback" in run("repair", factory("raising"), "--debug").stderr

    def test_quiet_says_nothing_and_the_status_tells(self, factory) -> None:
        for name, status in (("dead", 0), ("half", 1)):
            result = run("repair", factory(name), "--quiet")
            assert (result.exit_code, result.stdout, result.stderr) == (status, "", "")


class TestFiles:
    def test_a_dry_run_says_the_same_and_writes_nothing(self, factory, out: Path) -> None:
        wet = run("repair", factory("dead"), "-o", out / "m.safetensors")
        (out / "m.safetensors").unlink()
        dry = run("repair", factory("dead"), "--dry-run")
        assert dry.exit_code == 0
        assert dry.stdout == wet.stdout
        assert written(out) == set()

    @pytest.mark.parametrize("name", ["dead", "widened", "half"])
    def test_the_file_holds_the_mended_model(self, factory, out: Path, name: str) -> None:
        place = out / "mended.safetensors"
        run("repair", factory(name), "--warnings", "-o", place)
        target = load(factory(name))
        repair = fanin.repair_(target.model, target.batch, target.loss, warnings=True)
        assert repair.changed
        assert same(load_file(place), target.model.state_dict())

    @pytest.mark.parametrize("seed", [0, 5])
    def test_the_recipe_inside_the_file_makes_it_again(self, factory, out: Path, seed: int) -> None:
        place = out / "mended.safetensors"
        run("repair", factory("widened"), "--warnings", "--seed", seed, "-o", place)
        recipe, drawn = origin(place)
        assert drawn == seed
        target = load(factory("widened"), seed=seed)
        before = {name: p.clone() for name, p in target.model.state_dict().items()}
        assert not same(load_file(place), before)
        fanin.Plan.of(recipe).apply_(target.model, drawn)
        assert same(load_file(place), target.model.state_dict())

    def test_the_mended_file_can_be_loaded_and_is_sound(self, out: Path) -> None:
        place = out / "mended.safetensors"
        assert run("repair", FAULTY, "-o", place).exit_code == 0
        target = load(FAULTY)
        assert not fanin.check(target.model, target.batch, target.loss).ok
        target.model.load_state_dict(load_file(place))
        assert fanin.check(target.model, target.batch, target.loss).ok

    def test_init_makes_the_same_file_from_the_recipe(self, out: Path) -> None:
        for target in (FAULTY, SOUND):
            places = [out / name for name in ("repaired", "drawn")]
            recipe = out / "mend.toml"
            assert run("repair", target, "-o", places[0], "--recipe", recipe).exit_code == 0
            again = run("init", target, "--recipe", recipe, "-o", places[1])
            assert again.exit_code == 0, again.stderr
            assert places[0].read_bytes() == places[1].read_bytes()

    def test_the_recipe_holds_the_changes_alone(self, factory, out: Path) -> None:
        place = out / "mend.toml"
        run("repair", factory("widened"), "--warnings", "--recipe", place)
        plan = fanin.Plan.from_toml(place.read_text(encoding="utf-8"))
        assert {a.parameter for a in plan} == {"0.weight", "2.weight"}
        assert plan["0.weight"].arguments["outputs"] == tuple(range(8, 16))
        assert set(plan.untouched) == {"0.bias", "2.bias"}
        assert plan.scheme == "repair"

    def test_stdout_holds_the_recipe_or_the_json_alone(self, factory) -> None:
        recipe = run("repair", factory("dead"), "--recipe", "-")
        assert len(fanin.Plan.from_toml(recipe.stdout)) == 1
        told = json.loads(run("repair", factory("dead"), "--json", "-").stdout)
        assert told["changed"] == ["0.bias"]

    def test_json_is_the_repair_as_data(self, factory, out: Path) -> None:
        for name, status in (("dead", 0), ("half", 1)):
            result = run("repair", factory(name), "--json", out / "r.json", "--dry-run")
            assert result.exit_code == status
            told = json.loads((out / "r.json").read_text(encoding="utf-8"))
            assert told["schema_version"] == 1
            assert told["ok"] is (status == 0)
            assert told["preserved"] is False
            assert told["before"]["ok"] is False
            assert told["after"]["ok"] is told["ok"]
            (change,) = told["changes"]
            assert (change["entries"], change["total"], change["before"]) == (32, 32, 100.0)
            assert change["after"] == 0.0
            assert change["because"]

    def test_the_page_shows_what_the_terminal_says(self, factory, out: Path) -> None:
        for name, status in (("dead", 0), ("half", 1)):
            result = run("repair", factory(name), "--html", out / "r.html", "--dry-run")
            assert result.exit_code == status
            page = Page((out / "r.html").read_text(encoding="utf-8"))
            page.assert_sound()
            assert result.stdout.splitlines()[1] in page.text
        assert written(out) == {"r.html"}

    def test_two_runs_write_the_same_bytes(self, factory, out: Path) -> None:
        found = set()
        for name in "ab":
            run("repair", factory("dead"), "-o", out / name, "--recipe", out / f"{name}.toml")
            found.add((out / name).read_bytes() + (out / f"{name}.toml").read_bytes())
        assert len(found) == 1

    def test_what_cannot_run_leaves_the_files_that_are_there(self, factory, out: Path) -> None:
        for name in ("m", "r"):
            (out / name).write_text("mine")
        arguments = ("-o", out / "m", "--recipe", out / "r")
        assert run("repair", factory("raising"), *arguments).exit_code == 2
        assert {(out / name).read_text() for name in ("m", "r")} == {"mine"}
        assert written(out) == {"m", "r"}


class TestOptions:
    def test_warnings_are_mended_on_request(self, factory) -> None:
        left = run("repair", factory("widened"))
        assert left.exit_code == 0
        assert "nothing to mend" in left.stdout
        assert "S101" in left.stdout
        mended = run("repair", factory("widened"), "--warnings")
        assert "2 of 4 parameters changed" in mended.stdout
        assert "S101" not in mended.stdout

    def test_preserve_keeps_the_output(self, factory, out: Path) -> None:
        place = out / "m"
        result = run("repair", factory("widened"), "--preserve", "-o", place, "--json", "-")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["preserved"] is True
        target = load(factory("widened"))
        fresh = torch.randn(64, 10)
        with torch.no_grad():
            before = target.model(fresh)
            state = load_file(place)
            assert not same(state, target.model.state_dict())
            target.model.load_state_dict(state)
            after = target.model(fresh)
        assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())

    def test_all_or_nothing_writes_nothing_where_an_error_remains(self, factory, out: Path) -> None:
        arguments = ("-o", out / "m", "--recipe", out / "r", "--all-or-nothing")
        result = run("repair", factory("half"), *arguments)
        assert result.exit_code == 1
        assert "nothing changed" in result.stdout
        assert written(out) == set()
        assert run("repair", factory("dead"), *arguments).exit_code == 0
        assert written(out) == {"m", "r"}

    def test_without_it_the_best_that_was_found_is_written(self, factory, out: Path) -> None:
        assert run("repair", factory("half"), "-o", out / "m").exit_code == 1
        assert not load_file(out / "m")["2.bias"].any()

    def test_what_is_frozen_is_mended_on_request(self, factory, out: Path) -> None:
        assert run("repair", factory("half"), "--frozen", "-o", out / "m").exit_code == 0
        assert load_file(out / "m")["0.weight"].std() < 5

    def test_every_file_that_was_written_is_told(self, factory, out: Path) -> None:
        told = run(
            "repair", factory("dead"), "-o", out / "m", "--recipe", out / "r", "--html", out / "h"
        ).stderr
        for name, what in (("m", "the mended model"), ("r", "what was changed"), ("h", "open it")):
            assert f"{out / name}: {what}" in told
        assert "nothing written" not in told

    def test_select_and_ignore(self, factory) -> None:
        untouched = run("repair", factory("dead"), "--select", "N")
        assert untouched.exit_code == 0
        assert "nothing to mend" in untouched.stdout
        named = run("repair", factory("dead"), "--select", "dead-units,S102")
        assert "0.bias" in named.stdout
        assert "nothing to mend" in run("repair", factory("dead"), "--ignore", "P,S").stdout

    def test_the_construction_is_watched_for_memory_that_nobody_wrote(self, factory) -> None:
        """What torch.empty found may look like weights; that nobody wrote it is known."""
        told = json.loads(run("repair", factory("unwritten"), "--json", "-").stdout)
        assert "N402" in {f["code"] for f in told["before"]["findings"]}
        assert "2.weight" in told["changed"]
        assert told["ok"] is True

    def test_another_input_takes_the_place_of_the_batch(self, factory) -> None:
        assert run("repair", factory("dead"), "--input", "16x10").exit_code == 2  # labels for 32
        assert run("repair", factory("dead"), "--input", "32x10").exit_code == 0
        assert run("repair", factory("dead"), "--input", "32x9").exit_code == 2

    def test_the_range_of_a_dtype(self, tmp_path: Path) -> None:
        place = tmp_path / "loud.py"
        place.write_text(
            "import torch\nfrom torch import nn\n"
            "def build():\n"
            "    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.LayerNorm(32), "
            "nn.Linear(32, 4))\n"
            "    with torch.no_grad():\n"
            "        model[0].weight.mul_(1e6)\n"
            "    return model, torch.randn(32, 20)\n"
        )
        result = run("repair", f"{place}:build", "--dtype", "float16")
        assert result.exit_code == 0
        assert "N404 before, no error after" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repair"], "Missing argument"),
        (["repair", "no/such/file.py:build"], "no/such/file.py"),
        (["repair", FAULTY, "-o", "-"], "a checkpoint needs a file"),
        (["repair", FAULTY, "-o", "no/folder/x"], "cannot be written"),
        (["repair", FAULTY, "--recipe", "no/folder/x"], "cannot be written"),
        (["repair", FAULTY, "--json", "no/folder/x"], "cannot be written"),
        (["repair", FAULTY, "--html", "no/folder/x"], "--html no/folder/x: cannot be written"),
        (["repair", FAULTY, "--html", "-"], "a page needs a file"),
        (["repair", FAULTY, "--dry-run", "-o", "x"], "--dry-run writes no file"),
        (["repair", FAULTY, "--dry-run", "--recipe", "-"], "--dry-run writes no file"),
        (["repair", FAULTY, "--select", "S999"], "there is no rule S999"),
        (["repair", FAULTY, "--seed", "-1"], "-1"),
        (["repair", FAULTY, "--dtype", "float8"], "float8"),
        (["repair", FAULTY, "--warning=yes"], "--warning"),
        (["repair", FAULTY, "--input", "0xx"], "0xx"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_two_outputs_cannot_share_stdout() -> None:
    """Neither could be read back."""
    result = run("repair", FAULTY, "--recipe", "-", "--json", "-")
    assert result.exit_code == 2
    assert result.stdout == ""


def test_help_lists_repair_and_its_options() -> None:
    assert "repair" in run("--help").stdout
    told = run("repair", "--help").stdout
    for option in (
        "--dry-run",
        "--output",
        "--recipe",
        "--warnings",
        "--preserve",
        "--frozen",
        "--json",
        "--html",
    ):
        assert option in told
    assert "--all-or-nothing" in told
    assert "Exit status" in told


def test_ctrl_c_is_status_130_and_writes_nothing(
    factory, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early, in the middle and in the last forward pass."""
    forward, calls, stop = nn.Linear.forward, [], [0]

    def counted(self: nn.Linear, x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == stop[0]:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    arguments = ("repair", factory("dead"), "-o", out / "m", "--recipe", out / "r")
    assert run(*arguments).exit_code == 0
    total = len(calls)
    for path in out.iterdir():
        path.unlink()
    for stop[0] in (1, total // 2, total):
        calls.clear()
        result = run(*arguments)
        assert result.exit_code == 130
        assert len(result.stderr.splitlines()) == 1
        assert written(out) == set()
