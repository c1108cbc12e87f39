"""The package's dependencies, read from requirements.txt when it is built: a hook of hatchling.

requirements.txt is the one list of dependencies, since hosts of apps install from it. Its first paragraph, for the
engine, is the dependencies of the package; its second paragraph is the extra "app".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Dependencies(MetadataHookInterface):
    """Fills in `dependencies` and `optional-dependencies`."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "requirements.txt").read_text("utf-8")
        engine, app = (
            [line for line in part.splitlines() if not line.startswith("#")] for part in text.strip().split("\n\n")
        )
        metadata |= {"dependencies": engine, "optional-dependencies": {"app": app}}
