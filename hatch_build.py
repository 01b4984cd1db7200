"""Build hook: compiles the draw where a C compiler is found.

Without one the package is built all the same: everything is then drawn by the numpy reference, to
the same bits.  The environment variable FANIN_COMPILE says "never" to leave it out, or "always" to
fail where it cannot be built; CC names the compiler, CFLAGS further options (and ARCHFLAGS, by
which macOS is told to build for another processor).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src", "fanin", "draw", "compiled")
OPTIONS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared", "-pthread"]
LIBRARIES = ["-lm"]  # has fesetenv where the C library itself has not


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc]  # hatchling has no types
    """Adds the library to a wheel, which is then for this platform alone."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile into the source tree; an editable installation finds the library there."""
        if self.target_name != "wheel":
            return
        wish = os.environ.get("FANIN_COMPILE", "")
        if wish not in ("", "never", "always"):
            raise SystemExit(f"FANIN_COMPILE: {wish!r}; never or always, or nothing, is allowed")
        folder = Path(self.root) / FOLDER
        library = folder / "draw.so"
        if wish == "never":
            library.unlink(missing_ok=True)
            return
        problem = compiled(folder / "draw.c", library)
        if problem:
            library.unlink(missing_ok=True)  # one that is older than its source
            if wish == "always":
                raise SystemExit(f"the draw cannot be compiled: {problem}")
            self.app.display_warning(f"the draw is not compiled: {problem}")
            return
        build_data["artifacts"].append(f"/{FOLDER.as_posix()}/draw.so")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"


def compiled(source: Path, library: Path) -> str:
    """Compile; the problem in one line, or nothing."""
    if os.name != "posix":
        return "only POSIX systems are supported"  # the threads are theirs
    command = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc")]
    if command[0] is None or shutil.which(command[0]) is None:
        return "no C compiler is found"
    given = (os.environ.get(name, "") for name in ("CFLAGS", "ARCHFLAGS"))
    flags = [*OPTIONS, *(flag for flags in given for flag in shlex.split(flags))]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # then moved in one step
        made = Path(folder) / library.name
        try:
            done = subprocess.run(
                [*command, *flags, "-o", str(made), str(source), *LIBRARIES],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            return f"{command[0]}: {error.strerror}"
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
            return f"{command[0]}: {lines[0].strip()}"
        made.replace(library)
    return ""
