"""The page's own code: its unit tests by node, its types by tsc where there is one, and its shape."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = sorted((HERE.parents[1] / "web" / "js").rglob("*.js"))


def run(tool: str, *arguments: str) -> None:
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"no {tool} on this machine")
    done = subprocess.run([program, *arguments], cwd=HERE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_state_geometry_and_undo() -> None:
    run("node", "--test", str(HERE / "canvas.test.js"))


def test_types() -> None:
    run("tsc", "--project", "jsconfig.json")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_checked_and_leaves_the_host_as_it_is(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= 300 and max(map(len, lines)) <= 120
    assert lines[0] == "// @ts-check"
    code = "\n".join(lines)
    assert ".prototype" not in code and "http" not in code.replace("http://www.w3.org", "")  # the SVG name space
    for target in ("window", "document", "globalThis"):
        assert f"{target}.addEventListener" not in code
