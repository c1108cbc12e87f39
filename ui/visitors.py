"""What visitors of the app may ask for: which models and data, how much, and for how long."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from barber.bundled import STORYTELLER
from barber.errors import UserError
from barber.registry import DATA_SOURCES

ALLOW_PATHS = "BARBER_ALLOW_PATHS"  # environment: "1" lets visitors name files and folders of this machine
ALLOW_HOSTS = "BARBER_ALLOW_HOSTS"  # environment: further names that the app is reached by, with commas between
HUB_ID = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")
TURN_MINUTES = 10.0  # of a run while others wait, on a server that others reach
MOST_CHARACTERS = 1000  # of a setting
MOST_IN_PROMPT = 10_000  # characters


@dataclass(frozen=True)
class Policy:
    """What the owner of a server allows.

    names: the host names that it answers to, besides plain addresses. paths: whether visitors may name files and
    folders of this machine. turn: seconds that a run may take while others wait, None for no limit. alone: whether only
    this machine reaches it. runs: the folder of the runs, None for a temporary one.
    """

    names: tuple[str, ...]
    paths: bool
    turn: float | None
    alone: bool
    runs: Path | None


def default_host() -> str:
    """The address to listen on where none is given: this machine only, unless Gradio's own variable names another."""
    return os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags by which the owner of a server lets others use it."""
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[name for name in os.environ.get(ALLOW_HOSTS, "").split(",") if name],
        metavar="NAME",
        help=f"a further host name that visitors use (also {ALLOW_HOSTS}, with commas between)",
    )
    parser.add_argument(
        "--allow-paths",
        action="store_true",
        default=os.environ.get(ALLOW_PATHS) == "1",
        help=f"let visitors name files and folders of this machine (also {ALLOW_PATHS}=1; done anyway where only this "
        "machine can reach the app, never on a Space)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=None,
        help=f"how long a run may take while others wait (default: {TURN_MINUTES:g} where others can reach the app)",
    )


def settle(flags: Namespace) -> Policy:
    """The policy that the flags give, which becomes that of this process, for `may_name_paths`."""
    alone = _is_loopback(flags.host) and not flags.allow_host and not on_a_space()
    names = ("localhost", flags.host, *flags.allow_host)
    if on_a_space():
        names += ("*.hf.space", *filter(None, [os.environ.get("SPACE_HOST")]))
    minutes = flags.minutes if flags.minutes is not None or alone else TURN_MINUTES
    runs = flags.runs or (Path("runs") if alone else None)
    turn = None if minutes is None else 60 * minutes
    policy = Policy(names, alone or flags.allow_paths, turn, alone, runs and runs.absolute())
    os.environ[ALLOW_PATHS] = str(int(policy.paths))
    if not policy.paths and not on_a_space():
        os.chdir(_nowhere())  # a hub id may be the relative path of a folder, too
    return policy


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (is_address(host) and ip_address(host).is_loopback)


def _nowhere() -> str:
    """An empty folder, removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="barber-nowhere-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def is_address(host: str) -> bool:
    """Whether `host` is an IP address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def on_a_space() -> bool:
    """Whether this process runs on a Hugging Face Space, where anybody may use it."""
    return "SPACE_ID" in os.environ


def may_name_paths() -> bool:
    """Whether visitors may name files and folders of this machine; never on a Space, whatever its owner allows."""
    return os.environ.get(ALLOW_PATHS) == "1" and not on_a_space()


def check(name: str, value: object) -> None:
    """UserError for a value of a setting that no visitor may give, without any access to what it names.

    name: one of settings.FIELDS. All refused paths get the same sentence, so that it does not show which files exist
    on this machine.
    """
    if isinstance(value, str) and (len(value) > MOST_CHARACTERS or not value.isprintable()):
        raise UserError(
            f"The text given for {name} is too long or has unprintable characters: give at most {MOST_CHARACTERS} "
            "printable ones."
        )
    text = str(value or "").strip()
    if may_name_paths() or not text:
        return
    if name == "model" and not (text == STORYTELLER or (HUB_ID.fullmatch(text) and not Path(text).exists())):
        raise UserError(f"Model {text!r} is not a hub id: files of the server cannot be used here, give owner/name.")
    for data in {"calibration": [text], "evaluation": text.split(",")}.get(name, []):
        if data.strip() and data.strip() not in DATA_SOURCES:
            raise UserError(f"Data {data.strip()!r} cannot be used here: choose one of {', '.join(DATA_SOURCES)}.")


def check_prompt(prompt: str | None) -> str:
    """The prompt, if a model may be asked to continue it; else UserError."""
    if not (prompt or "").strip():
        raise UserError("Give a prompt: a few words for the models to continue.")
    if len(prompt) > MOST_IN_PROMPT:
        raise UserError(
            f"The prompt has {len(prompt)} characters, but at most {MOST_IN_PROMPT} are allowed: shorten it."
        )
    return prompt
