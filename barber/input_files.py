"""Check input files that a user names, and show their names."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from barber.errors import UserError


def regular_file(given: str | Path, what: str, allowed: str) -> Path:
    """The resolved path of a readable regular file; raises UserError for anything else.

    A fifo or a device is rejected, since reading it may block or never end. what: description of the file, like "Data
    file". allowed: what to give instead, a clause.
    """
    reason = None
    try:
        path = Path(given).expanduser().resolve(strict=True)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            reason = "is a folder"
        elif not stat.S_ISREG(mode):
            reason = "is not a regular file"
        elif not os.access(path, os.R_OK):
            reason = "may not be read"
    except (FileNotFoundError, NotADirectoryError):
        reason = "does not exist"
    except OSError as error:
        reason = f"cannot be reached ({error.strerror})"
    except RuntimeError:  # pathlib raises both
        reason = "names an unknown user" if str(given).startswith("~") else "is a loop of links"
    except ValueError:
        reason = "is not a possible path of a file"
    if reason:
        raise UserError(f"{what} {shortened(str(given))!r} {reason}: {allowed}.")
    return path


def shortened(text: str, most: int = 200) -> str:
    """A text for a message; the middle of a long one is left out."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def shown_name(given: str) -> str:
    """The name of a model or of data for others to read: of an absolute path only its last part."""
    return Path(given).name if os.path.isabs(given) else given
