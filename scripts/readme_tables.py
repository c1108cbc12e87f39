"""Write the table of flags into README.md, from the settings: python scripts/readme_tables.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from barber.fields import Setting  # noqa: E402 (the path above)
from barber.settings import FLAGS  # noqa: E402

BEGIN, END = "<!-- flags: made by scripts/readme_tables.py -->", "<!-- end of flags -->"


def row(flag: Setting) -> str:
    """A flag as a line of the table: its name, what it does and can be, its default."""
    named = [f"`{name}`" + (f" ({title})" if title.casefold() != name else "") for name, title in flag.choices.items()]
    choices = f": {', '.join(named)}" if flag.closed else ""
    return f"| `--{flag.flag}` | {flag.described}{choices} | {flag.usual and f'`{flag.usual}`'} |"


def with_tables(readme: str) -> str:
    """The text of README.md with its table made again."""
    table = "\n".join(("| flag | meaning | default |", "|---|---|---|", *map(row, FLAGS)))
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    assert len(pattern.findall(readme)) == 1, "README.md does not have the marks of its table once"
    return pattern.sub(lambda _: f"{BEGIN}\n\n{table}\n\n{END}", readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_tables(path.read_text("utf-8")), "utf-8")
