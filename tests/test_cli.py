"""The command line: exit status, what goes to stdout and to stderr, and files."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample_reports
from click.testing import CliRunner, Result
from rich.console import Console
from torch import nn

import fanin
from fanin.cli import cli
from fanin.cli.output import STDOUT, replacing, require_writable, write_json
from fanin.cli.progress import Progress
from fanin.errors import ForwardError
from fanin.findings import RULES

EXAMPLES = Path(__file__).parent.parent / "examples"
HEALTHY = f"{EXAMPLES / 'classifier.py'}:build"
FAULTY = f"{EXAMPLES / 'zero_start.py'}:build"

SOUND = replace(sample_reports.gpt2(), findings=())
UNSOUND = sample_reports.zero_mlp()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the check: note its arguments, and return a sound report."""
    calls: list[dict[str, Any]] = []

    def check(model: nn.Module, batch: Any, loss: Any, **options: Any) -> fanin.Report:
        calls.append({"model": model, "batch": batch, "loss": loss, **options})
        options["progress"]("measuring")
        return SOUND

    monkeypatch.setattr("fanin.cli.check_model", check)
    return calls


def failing(error: BaseException) -> Callable[..., Any]:
    def check(*_arguments: Any, **_options: Any) -> Any:
        raise error

    return check


class TestCheck:
    def test_a_sound_report_is_status_0(self, checked: list[dict[str, Any]]) -> None:
        result = run("check", HEALTHY)
        assert result.exit_code == 0
        assert result.stderr == ""
        assert result.stdout

    def test_error_findings_are_status_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fanin.cli.check_model", lambda *_a, **_k: UNSOUND)
        result = run("check", HEALTHY)
        assert result.exit_code == 1
        assert "S101" in result.stdout

    def test_what_was_found_ends_with_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fanin.cli.check_model", lambda *_a, **_k: UNSOUND)
        monkeypatch.setenv("COLUMNS", "400")  # no line is broken
        given = ("--input", "4x16")
        *_, title, explain, mend, anew = run("check", HEALTHY, *given).stdout.splitlines()
        assert title == "What now?"
        assert explain.startswith("  fanin explain S101  ")
        assert shlex.split(mend)[:6] == ["fanin", "repair", HEALTHY, *given, "--dry-run"]
        assert shlex.split(anew)[:5] == ["fanin", "plan", HEALTHY, *given]
        assert "What now?" not in run("check", HEALTHY, "--json", "-").stdout
        asked = ("--seed", "3", "--device", "cpu", "--dtype", "float16")
        *_, mend, anew = run("check", HEALTHY, *asked).stdout.splitlines()
        assert shlex.split(mend)[:10] == ["fanin", "repair", HEALTHY, *asked, "--dry-run"]
        assert shlex.split(anew)[:5] == ["fanin", "plan", HEALTHY, "--seed", "3"]
        warned = replace(UNSOUND.findings[0], severity="warning")
        monkeypatch.setattr(
            "fanin.cli.check_model", lambda *_a, **_k: replace(SOUND, findings=(warned,))
        )
        assert " --warnings --dry-run  " in run("check", HEALTHY).stdout

    def test_a_sound_start_asks_for_nothing(self, checked: list[dict[str, Any]]) -> None:
        assert "What now?" not in run("check", HEALTHY).stdout

    def test_options_reach_the_check(self, checked: list[dict[str, Any]]) -> None:
        arguments = "--seed 7 --dtype float16 --select s,P201 --select N4 --ignore locked-units"
        assert run("check", HEALTHY, *arguments.split()).exit_code == 0
        (call,) = checked
        assert call["seed"] == 7
        assert call["dtype"] == "float16"
        assert call["select"] == ("S", "P201", "N4")
        assert call["ignore"] == ("S101",)
        assert call["loss"] is not None
        assert call["record"] is not None

    def test_nothing_is_selected_or_ignored_by_default(self, checked: list[dict[str, Any]]) -> None:
        run("check", HEALTHY)
        assert checked[0]["select"] is None
        assert checked[0]["ignore"] is None
        assert checked[0]["dtype"] is None

    def test_the_seed_reaches_the_target(self, checked: list[dict[str, Any]]) -> None:
        for seed in ("1", "1", "2"):
            run("check", HEALTHY, "--seed", seed)
        first, again, other = (call["batch"] for call in checked)
        assert first.equal(again)
        assert not first.equal(other)

    def test_inputs_reach_the_target(self, checked: list[dict[str, Any]]) -> None:
        model = f"{EXAMPLES / 'two_inputs.py'}:build"
        run("check", model, "--input", "tokens=tokens:4x12@100", "--input", "scale=4x16")
        assert list(checked[0]["batch"]) == ["tokens", "scale"]

    def test_the_device_reaches_the_target(self, checked: list[dict[str, Any]]) -> None:
        run("check", HEALTHY, "--device", "meta")
        assert checked[0]["batch"].is_meta

    def test_full_shows_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fanin.cli.check_model", lambda *_a, **_k: sample_reports.hundred())
        short, full = run("check", HEALTHY).stdout, run("check", HEALTHY, "--full").stdout
        assert len(full.splitlines()) > len(short.splitlines())

    def test_quiet_shows_nothing(self, checked: list[dict[str, Any]]) -> None:
        result = run("check", HEALTHY, "--quiet")
        assert (result.exit_code, result.output) == (0, "")

    def test_what_the_users_code_prints_goes_to_stderr(
        self, tmp_path: Path, checked: list[dict[str, Any]]
    ) -> None:
        path = tmp_path / "chatty.py"
        path.write_text(
            "import torch\nprint('importing')\ndef build():\n    print('building')\n"
            "    return torch.nn.Linear(1, 1), torch.ones(1, 1)\n"
        )
        result = run("check", f"{path}:build", "--json", "-")
        assert json.loads(result.stdout)["schema_version"]
        assert result.stderr == "importing\nbuilding\n"


class TestRules:
    @pytest.mark.parametrize("option", ["--select", "--ignore"])
    def test_an_unknown_code_offers_the_nearest(self, option: str) -> None:
        result = run("check", HEALTHY, option, "S101,P291")
        assert result.exit_code == 2
        assert "there is no rule P291; did you mean P201" in result.stderr
        assert len(result.stderr.splitlines()) == 1

    def test_an_unknown_name_offers_the_nearest(self) -> None:
        told = run("check", HEALTHY, "--select", "loked-units").stderr
        assert "did you mean locked-units" in told

    def test_an_empty_selection_is_refused(self) -> None:
        result = run("check", HEALTHY, "--select", " , ")
        assert result.exit_code == 2
        assert "names no rule" in result.stderr


class TestJson:
    @pytest.mark.parametrize("place", ["-", "/dev/fd/1"])
    def test_stdout_holds_only_the_document_by_every_name(
        self, place: str, checked: list[dict[str, Any]]
    ) -> None:
        result = run("check", HEALTHY, "--json", place)
        assert json.loads(result.stdout) == SOUND.to_dict()
        assert result.stderr == ""

    def test_a_file_comes_beside_the_text(
        self, tmp_path: Path, checked: list[dict[str, Any]]
    ) -> None:
        place = tmp_path / "report.json"
        result = run("check", HEALTHY, "--json", str(place))
        assert json.loads(place.read_text(encoding="utf-8")) == SOUND.to_dict()
        assert result.stdout

    def test_quiet_still_writes(self, tmp_path: Path, checked: list[dict[str, Any]]) -> None:
        place, page = tmp_path / "report.json", tmp_path / "report.html"
        result = run("check", HEALTHY, "--quiet", "--json", str(place), "--html", str(page))
        assert result.output == ""
        assert place.stat().st_size
        assert page.stat().st_size

    def test_a_page_needs_a_file(self) -> None:
        result = run("check", HEALTHY, "--html", "-")
        assert result.exit_code == 2
        assert "a page needs a file" in result.stderr


class TestFiles:
    @pytest.mark.parametrize("option", ["--json", "--html"])
    def test_an_unwritable_place_is_known_before_the_work(
        self, option: str, tmp_path: Path, checked: list[dict[str, Any]]
    ) -> None:
        for place in (tmp_path, tmp_path / "no folder" / "report"):
            result = run("check", HEALTHY, option, str(place))
            assert result.exit_code == 2
            assert f"{option} {place}: cannot be written" in result.stderr
            assert len(result.stderr.splitlines()) == 1
        assert not checked

    def test_nothing_else_is_left_in_the_folder(
        self, tmp_path: Path, checked: list[dict[str, Any]]
    ) -> None:
        run("check", HEALTHY, "--json", str(tmp_path / "a"), "--html", str(tmp_path / "b"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]

    def test_a_failed_writing_leaves_the_old_file(self, tmp_path: Path) -> None:
        place = tmp_path / "report.json"
        place.write_text("old")

        def interrupted() -> None:
            with replacing("--json", str(place)) as path:
                path.write_text("half of the n")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert place.read_text() == "old"
        assert list(tmp_path.iterdir()) == [place]

    def test_the_mode_of_the_old_file_and_a_link_stay(self, tmp_path: Path) -> None:
        place, link = tmp_path / "report.json", tmp_path / "link.json"
        place.write_text("old")
        place.chmod(0o640)
        link.symlink_to(place)
        with replacing("--json", str(link)) as path:
            path.write_text("new")
        assert link.is_symlink()
        assert place.read_text() == "new"
        assert stat.S_IMODE(place.stat().st_mode) == 0o640

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
    def test_a_device_is_written_and_not_replaced(self, checked: list[dict[str, Any]]) -> None:
        assert run("check", HEALTHY, "--json", "/dev/null").exit_code == 0
        assert Path("/dev/null").is_char_device()
        result = run("check", HEALTHY, "--json", "/dev/full")
        assert result.exit_code == 2
        assert "--json /dev/full: cannot be written: No space left" in result.stderr

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
    @pytest.mark.parametrize("early", [False, True])
    def test_a_pipe_is_written_and_a_reader_of_it_may_leave(
        self, tmp_path: Path, early: bool
    ) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        text = "x" * (1 << 20)  # more than a pipe holds
        found: list[str] = []

        def reader() -> None:
            with pipe.open() as file:
                found.append(file.read(1 if early else -1))

        thread = threading.Thread(target=reader)
        thread.start()
        require_writable("--json", str(pipe))
        write_json(text, str(pipe))
        thread.join()
        assert found == ["x" if early else f"{text}\n"]
        assert list(tmp_path.iterdir()) == [pipe]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
    @pytest.mark.parametrize("command", ["init", "repair"])
    def test_no_checkpoint_takes_the_place_of_a_pipe(self, tmp_path: Path, command: str) -> None:
        pipe, link = tmp_path / "pipe", tmp_path / "link"
        os.mkfifo(pipe)
        link.symlink_to(pipe)
        for place in (pipe, link):
            result = run(command, HEALTHY, "-o", str(place))
            assert result.exit_code == 2
            assert f"--output {place}: a checkpoint needs a file" in result.stderr
            assert pipe.is_fifo()
            assert link.is_symlink()


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_what_can_go_to_stdout_can_by_each_of_its_names(command: str) -> None:
    options = cli.commands[command].params
    for option in (o for o in options if "- is stdout" in (getattr(o, "help", None) or "")):
        for name in ("-", "/dev/stdout", "/dev/fd/1"):
            assert option.type.convert(name, option, None) == STDOUT
        for name in ("report.json", "./-", "stdout", "/dev/stderr", "/dev/null", "/dev/fd/63"):
            assert option.type.convert(name, option, None) == name


class TestFailures:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--nonsense"], "fanin: No such option"),
            (["chek"], "fanin: No such command 'chek'"),
            (["check"], "fanin check: Missing argument 'TARGET'"),
            (["check", HEALTHY, "--sed", "1"], "fanin check: No such option"),
            (
                ["check", HEALTHY, "--seed", "-1"],
                "'--seed': '-1'; an integer from 0 to 2**64 - 1 is",
            ),
            (["check", HEALTHY, "--seed", "x"], "fanin check: Invalid value for '--seed': 'x'; an"),
            (["compare", HEALTHY, "--steps", "0"], "'--steps': '0'; an integer of at least 1 is"),
            (["compare", HEALTHY, "--rate", "x"], "'--rate': 'x'; a number is needed"),
            (["check", HEALTHY, "--dtype", "int8"], "fanin check: Invalid value for '--dtype'"),
            (["check", HEALTHY, "--device", "nowhere"], "fanin: device 'nowhere' cannot be used"),
            (["check", HEALTHY, "--input", "8y"], "fanin: --input 8y: allowed is"),
            (["check", "no/file.py:build"], "fanin: there is no file no/file.py"),
            (["explain", "S1O1"], "there is no rule or scheme 'S1O1'; did you mean"),
        ],
    )
    def test_a_wrong_command_line_is_one_line_and_status_2(
        self, arguments: list[str], message: str
    ) -> None:
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""

    @pytest.mark.parametrize(
        ("error", "status", "message"),
        [
            (ForwardError("model: its forward\nraised"), 2, "fanin: model: its forward raised\n"),
            (
                RuntimeError("a\nb"),
                2,
                "fanin: could not run: RuntimeError: a (--debug shows where)",
            ),
            (KeyError(), 2, "fanin: could not run: KeyError (--debug shows where)\n"),
            (KeyboardInterrupt(), 130, "fanin: interrupted\n"),
            (ForwardError("\x1b[31mred\x07"), 2, "fanin: ?[31mred?\n"),
        ],
    )
    def test_a_check_that_fails_is_one_line(
        self, error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fanin.cli.check_model", failing(error))
        result = run("check", HEALTHY)
        assert result.exit_code == status
        assert result.stderr.startswith(message)
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        "arguments", [["--debug", "check", HEALTHY], ["check", HEALTHY, "--debug"]]
    )
    @pytest.mark.parametrize(
        ("error", "status"), [(ForwardError("no"), 2), (KeyboardInterrupt(), 130)]
    )
    def test_debug_shows_the_traceback(
        self,
        arguments: list[str],
        error: BaseException,
        status: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("fanin.cli.check_model", failing(error))
        result = run(*arguments)
        assert result.exit_code == status
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("fanin: ")

    def test_an_exit_of_the_users_code_is_a_failure(self, tmp_path: Path) -> None:
        path = tmp_path / "exits.py"
        path.write_text("import sys\ndef build(): sys.exit(0)\n")
        assert run("check", f"{path}:build").exit_code == 2


class TestExplain:
    def test_without_a_code_every_rule_is_listed(self) -> None:
        result = run("explain")
        assert result.exit_code == 0
        for rule in RULES.values():
            assert rule.code in result.stdout
            assert rule.name in result.stdout

    @pytest.mark.parametrize("name", ["S101", "s101", "locked-units"])
    def test_a_rule_is_explained_by_code_or_name(self, name: str) -> None:
        result = run("explain", name)
        assert result.exit_code == 0
        assert "locked-units" in result.stdout
        assert len(result.stdout.splitlines()) > 10


class TestDemo:
    class Table:
        def to_json(self) -> str:
            return '{"rows": []}'

        def __rich__(self) -> str:
            return "six starts"

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fanin.cli.run_demo", lambda progress: self.Table())

    def test_the_table_is_shown(self) -> None:
        assert run("demo").stdout == "six starts\n"

    def test_json_is_the_same_table(self, tmp_path: Path) -> None:
        assert json.loads(run("demo", "--json", "-").stdout) == {"rows": []}
        place = tmp_path / "demo.json"
        assert run("demo", "--json", str(place)).stdout == "six starts\n"
        assert json.loads(place.read_text()) == {"rows": []}


class TestHelp:
    def test_version(self) -> None:
        assert run("--version").stdout.startswith(f"fanin, version {fanin.__version__}\n")

    def test_no_command_shows_the_help(self) -> None:
        result = run()
        assert result.exit_code == 2
        assert "Commands:" in result.output

    @pytest.mark.parametrize("command", ["check", "explain", "demo"])
    def test_every_command_has_help(self, command: str) -> None:
        for flag in ("-h", "--help"):
            result = run(command, flag)
            assert result.exit_code == 0
            assert f"Usage: fanin {command}" in result.stdout
            assert "--debug" in result.stdout


class TestProgress:
    def test_nothing_is_written_when_stderr_is_no_terminal(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with Progress(patience=0) as progress:
            progress("measuring")
            time.sleep(0.2)
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(("patience", "shown"), [(0.0, True), (60.0, False)])
    def test_a_terminal_shows_it_once_the_work_takes_long(
        self, patience: float, shown: bool
    ) -> None:
        terminal = io.StringIO()
        console = Console(force_terminal=True, file=terminal)
        stdout = sys.stdout
        with Progress(console, patience=patience) as progress:
            progress("measuring [bold]the layers")
            time.sleep(0.3)
        assert ("measuring [bold]the layers" in terminal.getvalue()) == shown
        assert sys.stdout is stdout


class TestExamples:
    """The real check."""

    def test_the_healthy_example_is_sound(self) -> None:
        done = run("check", HEALTHY)
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout

    def test_the_model_alone_runs_with_inputs(self) -> None:
        inputs = ["--input", "tokens=tokens:4x12@100", "--input", "scale=4x16"]
        done = run("check", f"{EXAMPLES / 'two_inputs.py'}:build", *inputs)
        assert (done.exit_code, done.stderr) == (0, "")


class TestProcess:
    """The real program, too; each of these processes costs seconds to start."""

    def test_an_ascii_terminal_and_a_reader_that_leaves_early_change_nothing(self) -> None:
        """Neither is a traceback, nor another exit status."""
        command = f"({sys.executable} -m fanin check {FAULTY}; echo $? >&2) | head -1"
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, timeout=300, env=environment
        )
        assert done.stderr == "1\n"
        assert len(done.stdout.splitlines()) == 1

    def test_more_than_a_pipe_holds_is_no_failure_where_the_reader_leaves(self) -> None:
        code = "from fanin.cli.output import write_json; write_json('x' * (1 << 22), '-')"
        command = f'({sys.executable} -c "{code}"; echo $? >&2) | head -c 1'
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
        assert (done.stdout, done.stderr) == ("x", "0\n")

    @pytest.mark.skipif(not Path("/dev/fd").exists(), reason="there is no /dev/fd")
    @pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
    def test_a_process_substitution_is_written(self) -> None:
        command = f"{sys.executable} -m fanin check {FAULTY} --quiet --json >(cat)"
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=300, check=False
        )
        assert (done.returncode, done.stderr) == (1, "")
        assert json.loads(done.stdout)["ok"] is False

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
    def test_a_full_disk_is_one_line(self) -> None:
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "fanin", "check", FAULTY, "--json", "-"]
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300
            )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "No space left" in done.stderr

    @pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh")
    def test_a_closed_stdout_is_no_traceback(self) -> None:
        """Of a command that succeeds and of one that fails, one after the other."""
        code = (
            "import sys\n"
            "from fanin.cli import main\n"
            "for line in sys.argv[1:]:\n"
            "    sys.argv = ['fanin', *line.split()]\n"
            "    try:\n"
            "        main()\n"
            "    except SystemExit as end:\n"
            "        print(end.code, file=sys.stderr)\n"
        )
        done = subprocess.run(
            ["sh", "-c", '"$0" -c "$@" >&-', sys.executable, code, "explain S101",
             "check no_such_module:build"],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.stdout == ""
        assert done.stderr == "0\nfanin: there is no module no_such_module\n2\n"

    def test_training_that_imports_triton_ends_without_a_word(self) -> None:
        """Its bindings list what is left at the end, where nothing is freed."""
        pytest.importorskip("triton")
        command = [sys.executable, "-m", "fanin", "compare", HEALTHY, "--steps", "1", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_a_seed_may_fill_64_bits(self, tmp_path: Path) -> None:
        seed = str(2**64 - 1)
        path = str(tmp_path / "start.safetensors")
        assert run("check", HEALTHY, "--seed", seed).exit_code == 0
        assert run("init", HEALTHY, "--seed", seed, "-o", path).exit_code == 0
        assert run("verify", path, "--seed", seed).exit_code == 0
        assert run("check", HEALTHY, "--seed", str(2**64)).exit_code == 2

    @pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
    def test_ctrl_c_is_status_130_and_one_line(self, tmp_path: Path) -> None:
        path = tmp_path / "endless.py"
        path.write_text("import time\nprint('here', flush=True)\ntime.sleep(100)\n")
        command = [sys.executable, "-m", "fanin", "check", f"{path}:build"]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
        try:
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        finally:
            signal.signal(signal.SIGINT, before)
        with process:
            assert process.stderr is not None
            assert process.stderr.readline() == "here\n"
            process.send_signal(signal.SIGINT)
            assert process.stderr.read() == "fanin: interrupted\n"
        assert process.returncode == 130
