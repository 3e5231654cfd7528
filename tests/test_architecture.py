"""The house keeps its shape: who may import whom, one name for one thing, few parameters, few lines.

core < model, sparse < sampling, cache, vae < pipeline < auto_mask < data < training, evaluation < cli
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = {
    room: level
    for level, rooms in enumerate(
        ["core", "model sparse", "sampling cache vae", "pipeline", "auto_mask", "data", "training evaluation", "cli"]
    )
    for room in rooms.split()
}
WORLDS = {"scenes", "world"}  # procedural pictures: they know core alone, and not each other
PAINTED = {"data", "training", "evaluation", "cli"}  # who may know them
HOST = {"comfy", "comfy_api", "comfy_api_nodes", "comfy_execution", "comfy_extras", "execution", "folder_paths",
        "latent_preview", "node_helpers", "nodes", "server"}  # fmt: skip
SHARED = {"types", "inputs"}  # of the nodes, beside `host`
PARAMETERS = 7


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a file imports, wherever in it; of our own as lazydiff… and nodes…"""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.lineno, ".".join((*above, name))) for name in names)


def offenders(paths: list[Path], wrong: object) -> list[str]:
    """Imports of which wrong(path, parts of the dotted name) is true."""
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for line, name in imports(path)
        if wrong(path, name.split("."))  # type: ignore[operator]
    ]


def assert_none(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[1] if len(parts) > 2 else ""


# Who may import whom


def test_every_room_of_the_library_has_its_level() -> None:
    rooms = {path.parent.name for path in (ROOT / "lazydiff").glob("*/__init__.py")}
    assert rooms == LEVELS.keys() | WORLDS


def test_the_library_imports_downwards_alone() -> None:
    """Rooms of one level do not know each other; the package itself, which hands out its parts, knows all."""

    def upwards(path: Path, name: list[str]) -> bool:
        room = room_of(path)
        if name[0] != "lazydiff" or len(name) < 2 or not room or name[1] == room:
            return False
        if room in WORLDS:
            return name[1] != "core"
        if name[1] in WORLDS:
            return room not in PAINTED
        return LEVELS[name[1]] >= LEVELS[room]

    assert_none(offenders(files("lazydiff"), upwards))


def test_the_library_knows_no_host() -> None:
    assert_none(offenders(files("lazydiff"), lambda path, name: name[0] in HOST))


def test_a_node_knows_the_library_and_the_glue_but_no_other_node() -> None:
    """What nodes share is in `inputs`, `types` and `host`, and `host` knows no node; `__init__` hands out all."""

    def wrong(path: Path, name: list[str]) -> bool:
        if name[0] != "nodes" or path == ROOT / "nodes" / "__init__.py":
            return False
        allowed = {"host"} if room_of(path) == "host" else {"host", *SHARED}
        return name[1] not in allowed

    assert_none(offenders(files("nodes"), wrong))


def test_nodes_take_nothing_from_training_and_evaluation() -> None:
    """Inside the host their packages need not be installed."""
    apart = {"data", "training", "evaluation", "cli", *WORLDS}
    assert_none(offenders(files("nodes"), lambda path, name: name[0] == "lazydiff" and not apart.isdisjoint(name[1:2])))


def test_the_pack_imports_itself_relatively() -> None:
    """The host loads the folder under a name of its own, and has a module `nodes` of its own."""
    paths = [ROOT / "__init__.py", *files("lazydiff", "nodes")]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] in ("lazydiff", "nodes") for a in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in ("lazydiff", "nodes"))  # type: ignore[union-attr]
    ]
    assert_none(found)


def test_no_benchmark_imports_tests() -> None:
    tests = {"tests"} | {path.stem for path in (ROOT / "tests").iterdir()} - {"benchmarks"}  # its tests are called so
    assert_none(offenders(files("benchmarks"), lambda path, name: name[0] in tests))


# Names and sizes


def test_no_two_things_share_a_name() -> None:
    """Classes and functions at the top of the library's and the nodes' files."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in files("lazydiff", "nodes"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert_none([f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1])


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without self and cls."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    bound = bool(named) and named[0].arg in ("self", "cls")
    return len(named) - bound + (arguments.vararg is not None) + (arguments.kwarg is not None)


def is_given(path: Path, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether others say what it takes: a node's schema, or the host, to which it hands on all that may come."""
    in_nodes = path.is_relative_to(ROOT / "nodes")
    return in_nodes and (function.name == "execute" or function.args.kwarg is not None)


def test_functions_have_few_parameters() -> None:
    """Settings travel as one value."""
    assert_none([
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {parameters(node)}"
        for path in files("lazydiff", "nodes")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and parameters(node) > PARAMETERS
        and not is_given(path, node)
    ])  # fmt: skip


@pytest.mark.parametrize("folder", ["lazydiff", "nodes"])
def test_no_file_is_long(folder: str) -> None:
    long = {path: len(path.read_text("utf-8").splitlines()) for path in files(folder)}
    assert_none([f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in long.items() if lines > 400])
