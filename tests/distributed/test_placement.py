"""On any number of ranks and however it is sharded, a model gets the bits of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import CASES, WORLDS, Case, truth_of
from filelock import FileLock

WORKER = Path(__file__).with_name("worker.py")
LIMIT = 600  # seconds for all cases; a hang ends here
_TOLD = 3000  # characters of a failed run that are shown
#: What torch itself cannot do before 2.8, in the words of its errors.
UNABLE = (
    ()
    if torch.__version__ >= (2, 8)
    else (
        "FSDP+TP sharding does not support uneven sharding",
        "unexpected keyword argument 'ignored_params'",  # FSDP2 cannot cut what has no dimension
        "'Stream' object has no attribute 'record_event'",  # FSDP2 runs on a GPU only
        "torch 2.6 deals the parts out in the order of the ranks",
    )
)

UNDER_TORCHRUN = 2  # ranks; other numbers of them are forked from one process, which is quicker

Findings = dict[str, dict[int, list[str]]]  # case → rank → what it found wrong


def launched(worlds: list[int], folder: Path) -> str:
    """Run all cases of these numbers of ranks; how it went wrong, or nothing."""
    for case in CASES:
        path = folder / case.truth
        if not {*worlds}.isdisjoint(case.worlds) and not path.exists():
            truth_of(case).save(path)
    own = [sys.executable, str(WORKER), str(folder)]
    forked = [str(world) for world in worlds if world != UNDER_TORCHRUN]
    wrong = ran([*own, *forked], folder) if forked else ""
    if wrong or UNDER_TORCHRUN not in worlds:
        return wrong
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return ran([*torchrun, f"--nproc-per-node={UNDER_TORCHRUN}", *own[1:]], folder)


def ran(command: list[str], folder: Path) -> str:
    """Run a command to its end; how it went wrong, or nothing."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w+", encoding="utf-8") as log:
        run = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            status = run.wait(LIMIT)
        except subprocess.TimeoutExpired:
            status = f"none after {LIMIT} s"
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
        log.seek(0)
        return "" if status == 0 else f"exit status {status}:\n{log.read()[-_TOLD:]}"


@cache
def findings(world: int, folder: Path) -> Findings:
    """What each rank wrote."""
    found: Findings = {}
    for rank in range(world):
        path = folder / f"rank-{rank}-of-{world}.jsonl"
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            name, problems = json.loads(line)
            found.setdefault(name, {})[rank] = problems
    return found


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The findings of a number of ranks, and how the run ended: one run for all tests.

    Tests may be spread over several processes: the first one that asks runs it, with the numbers
    of ranks of all tests that were selected.
    """
    several = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if several else base) / "placement"
    folder.mkdir(exist_ok=True)
    parameters = [t.callspec.params for t in request.session.items if hasattr(t, "callspec")]
    chosen = {given["world"] for given in parameters if "world" in given}

    def findings_of(world: int) -> tuple[Findings, str]:
        ended = folder / "ended.txt"
        with FileLock(folder / "lock"):
            if not ended.exists():
                worlds = [each for each in WORLDS if each in chosen]
                ended.write_text(launched(worlds, folder), encoding="utf-8")
        return findings(world, folder), ended.read_text("utf-8")

    return findings_of


@pytest.mark.parametrize(
    ("case", "world"),
    [
        pytest.param(case, world, id=f"{world}-{case.name}")
        for world in WORLDS
        for case in CASES
        if world in case.worlds
    ],
)
def test_every_rank_finds_what_it_should(case: Case, world: int, run):
    found, ended = run(world)
    ranks = found.get(case.name, {})
    assert len(ranks) == world, f"{world - len(ranks)} ranks did not come to an end: {ended}"
    wrong = {rank: problems for rank, problems in ranks.items() if problems}
    told = "\n".join(f"rank {r}: {one}" for r, problems in wrong.items() for one in problems)
    if wrong and all(
        any(words in one for words in UNABLE) for some in wrong.values() for one in some
    ):
        pytest.skip(f"torch {torch.__version__} itself: {told.splitlines()[-1]}")
    assert not wrong, told


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_end_well(world: int, run):
    assert run(world)[1] == ""


def test_no_two_cases_have_one_name():
    for world in WORLDS:
        names = [case.name for case in CASES if world in case.worlds]
        assert len(set(names)) == len(names)
