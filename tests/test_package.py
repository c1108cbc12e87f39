"""The installed package: a wheel with everything the engine needs, a command, and lazy public names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import barber
from scripts import pages
from tests.support.jobs import ROOT

pytestmark = pytest.mark.process
NAMES = {
    "prune", "PruneConfig", "Sparsity", "load_model", "load_calibration", "run_job", "JobSpec", "RunDirectory",
    "UserError", "__version__",
}  # fmt: skip
DISTRIBUTIONS = {"yaml": "pyyaml"}  # packages whose import name differs
APP = {"gradio", "plotly", "jinja2", "pandas", "fastapi"}
USES_WHAT_IS_BUNDLED = """
import barber
from barber import PruneConfig, Sparsity, load_calibration, load_model, prune
from barber.bundled import TASKS_DIR

loaded = load_model("storyteller", device="cpu")
calibration = load_calibration("storyteller", loaded.tokenizer, samples=2, seqlen=32, seed=0)
*_, last = prune(loaded.model, calibration, PruneConfig(Sparsity.parse("2:4"), "wanda"))
print(barber.__file__, type(last).__name__, (TASKS_DIR / "story_ending.jsonl").is_file(), sep="\\n")
"""


def python(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess:
    """A new interpreter in `cwd`, with only `path` added to its module search path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without network from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder))
    made = python("-m", "pip", "wheel", *options, str(ROOT), cwd=folder)
    assert made.returncode == 0, made.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder into which only the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    done = python("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_the_engine_and_what_is_bundled_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    code = [path for path in (ROOT / "barber").rglob("*") if path.suffix in (".py", ".toml", ".typed")]
    bundled = [path for part in ("storyteller", "tasks") for path in (ROOT / "assets" / part).iterdir()]
    expected = {path.relative_to(ROOT).as_posix() for path in code}
    expected |= {f"barber/{path.relative_to(ROOT).as_posix()}" for path in bundled}
    assert {
        "barber/py.typed",
        "barber/storyteller/grammar.toml",
        "barber/assets/storyteller/model.safetensors",
    } <= expected
    assert len(names) == len(set(names))
    assert set(names) == expected


def requirements(lines: Iterable[str]) -> dict[str, Requirement]:
    """Requirements by the normal form of their names."""
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


def test_dependencies_are_those_of_the_requirements(metadata):
    text = (ROOT / "requirements.txt").read_text("utf-8")
    listed = requirements(line for line in text.splitlines() if line and not line.startswith("#"))
    required = requirements(metadata.get_all("Requires-Dist"))
    assert {name: found.specifier for name, found in required.items()} == {
        name: found.specifier for name, found in listed.items()
    }
    assert {name for name, found in required.items() if found.marker} == APP
    assert metadata["Version"] == barber.__version__


def test_the_engine_depends_on_all_that_it_imports(metadata):
    imported = set()
    for path in (ROOT / "barber").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    imported = {DISTRIBUTIONS.get(name, name) for name in imported}
    needed = {canonicalize_name(name) for name in imported - sys.stdlib_module_names - {"barber"}}
    required = requirements(metadata.get_all("Requires-Dist"))
    assert needed <= {name for name, found in required.items() if not found.marker}


def test_an_installed_engine_works_from_another_folder(installed, tmp_path):
    done = python("-c", USES_WHAT_IS_BUNDLED, cwd=tmp_path, path=installed)
    assert done.returncode == 0, done.stderr
    file, last, task = done.stdout.splitlines()
    assert Path(file).is_relative_to(installed)
    assert (last, task) == ("RunFinished", "True")


def test_the_command_is_installed(installed, tmp_path):
    command = str(installed / "bin" / "barber")
    shown = python(command, "--help", cwd=tmp_path, path=installed)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("usage: barber ")
    wrong = python(command, "--sparsity_type", "2:x", "--prune_method", "wanda", cwd=tmp_path, path=installed)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1), wrong.stderr


def test_an_installed_engine_applies_masks_and_says_what_it_lacks(installed, tmp_path):
    command = str(installed / "bin" / "barber")
    for name in ("apply", "masks"):
        shown = python(command, name, "--help", cwd=tmp_path, path=installed)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.startswith(f"usage: barber {name} ")
    for name in ("report", "tables"):
        lacking = python(command, name, "run", cwd=tmp_path, path=installed)
        assert (lacking.returncode, lacking.stderr.count("\n")) == (2, 1), lacking.stderr
        assert f"run `python main.py {name}` in the checkout" in lacking.stderr


def test_the_public_names_are_there():
    assert set(barber.__all__) == NAMES
    assert set(dir(barber)) >= NAMES
    for name in NAMES - {"__version__"}:
        assert getattr(barber, name).__doc__, name
    with pytest.raises(AttributeError, match="nonsense"):
        barber.nonsense  # noqa: B018


def test_type_checkers_and_the_interpreter_find_the_same_names():
    tree = ast.parse((ROOT / "barber" / "__init__.py").read_text("utf-8"))
    seen = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("barber.")
        for alias in node.names
    }
    assert seen == barber._WHERE


def test_importing_barber_imports_no_torch(tmp_path):
    code = "import sys, barber; dir(barber); barber.PruneConfig(barber.Sparsity(0.5)); print('torch' in sys.modules)"
    done = python("-c", code, cwd=tmp_path, path=ROOT)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("path", [pages.API, pages.ARCHITECTURE], ids=lambda path: path.name)
def test_the_pages_are_up_to_date(path):
    assert path.read_text("utf-8") == pages.pages()[path], "run `make docs`"
