"""The architecture: imports go one way, and no layer imports the libraries of another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {  # package or file: the project's packages it may import, and libraries it must not import
    "barber": ({"barber"}, {"gradio", "plotly", "pandas"}),
    "analysis": ({"analysis", "barber"}, {"gradio"}),
    "ui": ({"ui", "analysis", "barber"}, {"torch", "plotly"}),
    "app.py": ({"ui"}, {"torch", "plotly", "pandas"}),
    "main.py": ({"barber"}, {"gradio", "plotly", "pandas"}),
}
OURS = {"barber", "analysis", "ui", "app", "main", "tests"}
GROUND = {
    "atomic_files",
    "bundled",
    "config",
    "console",
    "errors",
    "events",
    "fields",
    "hub_access",
    "input_files",
    "job_spec",
    "memory",
    "progress",
    "registry",
    "settings",
}
PACKAGES = {  # package of barber: the packages it may import besides itself and the ground floor
    "kernels": set(),
    "storyteller": set(),
    "data": {"storyteller"},
    "models": set(),
    "pruning": {"kernels", "models", "data"},
    "runs": {"models"},
    "evaluation": {"models", "data", "pruning", "storyteller"},
    "jobs": {"kernels", "models", "data", "pruning", "runs", "evaluation", "storyteller"},
}


def sources(layer: str) -> list[Path]:
    place = ROOT / layer
    found = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert found, f"{layer} does not exist"
    return found


def imported(tree: ast.AST) -> set[str]:
    """The top-level names of all imports of a module, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here, so that this test sees them"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer):
    ours, never = LAYERS[layer]
    for path in sources(layer):
        names = imported(ast.parse(path.read_text("utf-8")))
        assert not (names & OURS) - ours, f"{path.relative_to(ROOT)} imports {(names & OURS) - ours}"
        assert not names & never, f"{path.relative_to(ROOT)} imports {names & never}"


def test_the_backend_never_prints():
    for path in sources("barber"):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not lines, f"{path.relative_to(ROOT)} prints in line {lines}"


def engine_imports(path: Path) -> set[str]:
    """The packages and ground-floor modules of barber that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "barber":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("barber."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("barber.")}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_packages_go_one_way(package):
    for path in sources(f"barber/{package}"):
        foreign = engine_imports(path) - PACKAGES[package] - GROUND - {package}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_the_ground_floor_imports_no_package():
    for name in GROUND:
        path = ROOT / "barber" / f"{name}.py"
        assert not engine_imports(path) - GROUND, f"{path.relative_to(ROOT)} imports {engine_imports(path) - GROUND}"


def test_every_package_and_module_is_listed():
    parts = {
        path.stem for path in (ROOT / "barber").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts == GROUND | PACKAGES.keys() | {"__init__", "cli", "commands"}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_module_has_a_docstring(layer):
    for path in sources(layer):
        text = path.read_text("utf-8")
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} has no docstring"


def test_the_entry_points_are_small():
    assert (ROOT / "app.py").read_text("utf-8").count("\n") <= 60
    assert (ROOT / "main.py").read_text("utf-8").count("\n") <= 20
