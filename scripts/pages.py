"""Write docs/api.md from docstrings, and the generated lists of docs/architecture.md: python scripts/pages.py."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from enum import Enum
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import barber
from barber import events
from barber.data.token_sets import CalibrationSet
from barber.models.loading import LoadedModel

ROOT = Path(__file__).resolve().parents[1]
API, ARCHITECTURE = ROOT / "docs" / "api.md", ROOT / "docs" / "architecture.md"
WIDTH = 100  # of a signature in one line


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, "utf-8")


def pages() -> dict[Path, str]:
    """The content that each page should have."""
    return {API: api_page(), ARCHITECTURE: architecture_page()}


def api_page() -> str:
    """The public names of barber, what they return, and the events."""
    public = {name: getattr(barber, name) for name in barber.__all__ if name != "__version__"}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    classes = {name: value for name, value in public.items() if inspect.isclass(value)}
    shown = {name: value for name, value in vars(events).items() if _defined_in_events(value)}
    returned = {value.__name__: value for value in (LoadedModel, CalibrationSet)}
    parts = [
        "# The Python API",
        "`import barber` gives these names and `barber.__version__`; each is imported when it is first used. "
        "`make docs` writes this page from the docstrings.",
        "## Functions",
        *(_entry(name, value) for name, value in functions.items()),
        "## Classes",
        *(_entry(name, value) for name, value in (classes | returned).items()),
        "## Events",
        "`prune`, `run_job` and a sweep (`barber.jobs.sweep`) yield these, from `barber.events`, in the order in which "
        "things happen.",
        *(_entry(name, value) for name, value in shown.items()),
    ]
    return "\n\n".join(parts) + "\n"


def architecture_page() -> str:
    """The page with its generated parts made again."""
    text = ARCHITECTURE.read_text("utf-8")
    for name, lines in {"packages": _packages(), "files": _files()}.items():
        begin, end = f"<!-- {name}: written by make docs -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = before + begin + "\n" + "\n".join(lines) + "\n\n" + end + rest.split(end)[1]
    return text


def _entry(name: str, value: type) -> str:
    parts = [f"### {name}", f"```python\n{_signature(name, value)}\n```", _markdown(inspect.getdoc(value) or "")]
    if inspect.isclass(value):
        members = [(member, vars(value)[member]) for member in vars(value) if not member.startswith("_")]
        lines = [_member(member, found) for member, found in members if _documented(found)]
        parts += ["\n".join(lines)] if lines else []
    return "\n\n".join(parts)


def _defined_in_events(value: object) -> bool:
    return inspect.isclass(value) and value.__module__ == events.__name__ and not issubclass(value, Enum)


def _documented(member: object) -> bool:
    return isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member)


def _member(name: str, member: object) -> str:
    """A method with its signature, or a property, and the first paragraph of its docstring."""
    called = name if isinstance(member, property) else _signature(name, getattr(member, "__func__", member))
    text = " ".join((inspect.getdoc(member) or "").split("\n\n")[0].split())
    return f"- `{' '.join(called.split())}`" + (f": {text}" if text else "")


class _Plain(str):
    """Text that a signature shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _signature(name: str, value: object) -> str:
    """name(parameters) -> type; one parameter a line where it is long."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return f"{name}(message: str)"
    signature = inspect.signature(value)
    parameters, keyword = [], False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            parameters.append("*")
            keyword = True
        if isinstance(parameter.default, Enum):
            parameter = parameter.replace(default=str(parameter.default))
        if parameter.annotation is not parameter.empty:
            parameter = parameter.replace(annotation=_Plain(parameter.annotation))
        parameters.append(str(parameter).replace(" = <factory>", " = ..."))
    returned = signature.return_annotation
    end = ")" if inspect.isclass(value) or returned in (signature.empty, None) else f") -> {returned}"
    line = f"{name}({', '.join(parameters)}{end}"
    return line if len(line) <= WIDTH else f"{name}(\n    " + ",\n    ".join(parameters) + f",\n{end}"


def _markdown(text: str) -> str:
    """A docstring with its sections ("Attributes:" and indented names) as lists."""
    lines = []
    for line in text.splitlines():
        if match := re.fullmatch(r" {4}([\w*, ]+): (.*)", line):
            line = f"- `{match[1]}`: {match[2]}"
        elif line.startswith(" " * 8):
            line = f"  {line.strip()}"
        lines.append(line)
    return "\n".join(lines)


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0]


def _modules(folder: str) -> list[Path]:
    paths = (path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py")
    return sorted(paths, key=lambda path: (path.parent, path.name))


def _packages() -> list[str]:
    """Each package in a line, and which others it imports."""
    folders = sorted(path.parent for path in (ROOT / "barber").glob("*/__init__.py"))
    names = {folder.name for folder in folders}
    lines = []
    for folder in [*folders, ROOT / "analysis", ROOT / "ui"]:
        files = sorted(folder.rglob("*.py"))
        imported = {module for file in files for module in _imported(file)}
        used = sorted({module.split(".")[1] for module in imported if module.startswith("barber.")} & names)
        used += sorted({module.split(".")[0] for module in imported} & {"analysis"})
        used = [name for name in used if name != folder.name]
        path = folder.relative_to(ROOT)
        lines.append(f"- **{path}/**: {_first_line(folder / '__init__.py')} Imports {_listed(used)}.")
    return lines


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no other package"


def _imported(path: Path) -> set[str]:
    """The full names of the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _files() -> list[str]:
    """Every module in a line: the first of its docstring."""
    paths = [ROOT / "app.py", ROOT / "main.py"]
    paths += [path for folder in ("barber", "analysis", "ui", "benchmarks", "scripts") for path in _modules(folder)]
    lines, heading = [], None
    for path in paths:
        folder = path.parent.relative_to(ROOT)
        if folder != heading:
            heading = folder
            title = "The top level" if folder == Path() else f"{folder}/"
            lines += ["", f"### {title}", ""]
        lines.append(f"- `{path.name}`: {_first_line(path)}")
    return lines[1:]


if __name__ == "__main__":
    main()
