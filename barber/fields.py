"""Declarations of settings, and how values are read and checked.

A setting is declared once, as the field of a dataclass (`PruneConfig`, `JobSpec`). The flag, the field of
the form, the parameter of the API, the parser of links and the README's table are made from that declaration.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from barber.errors import UserError

WRONG = reprlib.Repr()  # shortens rejected values in messages
WRONG.maxstring = 80
YES, NO = ("true", "1", "yes"), ("false", "0", "no")


class Choice(StrEnum):
    """One of a few values. `label` is its title in the app."""

    label: str

    def __new__(cls, value: str, label: str) -> Choice:
        member = str.__new__(cls, value)
        member._value_, member.label = value, label
        return member


class Group(StrEnum):
    """A section of the form, in order; all but the first are collapsed, with their value as title."""

    FIRST = ""
    METHOD = "Method in detail"
    DATA = "Data and seed"
    MEMORY = "Memory"


@dataclass(frozen=True)
class Need:
    """A condition under which a setting has an effect.

    Attributes:
        on: names of the settings in the condition.
        holds: (their values, in this order) -> bool.
        otherwise: the rest of a message that begins with "--flag", if the condition does not hold, without a full stop;
            "{name}" stands for the value of a setting in `on`.
    """

    on: tuple[str, ...]
    holds: Callable[..., bool]
    otherwise: str

    def met(self, values: Mapping[str, object]) -> bool:
        """Whether it holds for these values by name."""
        return self.holds(*(values[name] for name in self.on))


@dataclass(frozen=True)
class Setting:
    """The declaration of a setting.

    Attributes:
        help: one sentence, without a full stop: `--help`, the form, the README.
        local: the rest of that sentence where files of this machine are allowed.
        title: in the form.
        noun: name in messages; by default the field's name with spaces.
        flag: on the command line, if it differs from the name; "" for none.
        metavar: of the flag.
        flags: several flags that form the value, instead of one.
        explicit: whether the command line has no default for it.
        public: name in the form, in links and in the API, if it differs.
        choices: allowed values, value -> title; derived from the type if that is a `Choice`.
        open: whether values outside `choices` are allowed.
        also: further allowed values, which front ends do not list.
        words: allowed words instead of a number, word -> title.
        least, most: bounds of a number.
        convert: text -> value, for other types and for several values. Raises UserError.
        separate: whether a text is split at commas; for a setting with several values.
        example: an allowed value, for messages.
        group: section of the form; None to leave it out of the form, links and the API.
        beside: the setting in the same row of the form.
        width: width of its field in that row, relative to the others.
        placeholder: text of an empty field: the effect of leaving it empty.
        needs: conditions under which it has an effect.
        name, hint, default: of the field.
        kind: the type of one value.
        optional: whether None is allowed.
    """

    help: str
    local: str = ""
    title: str = ""
    noun: str = ""
    flag: str | None = None
    metavar: str = ""
    flags: tuple[Setting, ...] = ()
    explicit: bool = False
    public: str = ""
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    open: bool = False
    also: tuple[str, ...] = ()
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    least: float | None = None
    most: float | None = None
    convert: Callable[[str], Any] | None = None
    separate: bool = True
    example: str = ""
    group: Group | None = None
    beside: str = ""
    width: int = 1
    placeholder: str = ""
    needs: tuple[Need, ...] = ()
    name: str = ""
    hint: Any = str
    default: Any = None
    kind: type = str
    optional: bool = False

    def sentence(self, local: bool = True) -> str:
        """The help as a sentence; local: whether files of this machine may be named."""
        text = self.help + (self.local if local else "")
        return f"{text[:1].upper()}{text[1:]}."

    @property
    def described(self) -> str:
        """The help of a flag with all that is allowed, without its choices."""
        return self.help + self.local + "".join(f"; or {word}: {title}" for word, title in self.words.items())

    @property
    def usual(self) -> str:
        """The default of the flag as text; "" if there is none to show."""
        if self.explicit or self.default in (None, ()) or self.kind is bool:
            return ""
        return ",".join(self.default) if self.many else f"{self.default}"

    @property
    def many(self) -> bool:
        """Whether it is a tuple of values."""
        return get_origin(self.hint) is tuple

    @property
    def closed(self) -> bool:
        """Whether only `choices` are allowed."""
        return bool(self.choices) and not self.open

    @property
    def allowed(self) -> str:
        """The allowed values, for a message after "give"."""
        if self.closed:
            return f"one of {', '.join(self.choices)}"
        if self.kind in (int, float):
            what = "a whole number" if self.kind is int else "a number"
            words = "".join(f", or {word}" for word in self.words)
            return f"{what} from {self.least:g} to {self.most:.0f}{self.example and f', like {self.example}'}{words}"
        return f"one like {self.example or next(iter(self.choices), self.default)}"

    def unmet(self, values: Mapping[str, object]) -> Need | None:
        """The first need that does not hold for these values of settings, by name."""
        return next((need for need in self.needs if not need.met(values)), None)

    def read(self, value: object) -> Any:
        """Convert a text, a number or a value of its type to an allowed value. Raises UserError."""
        if value is None or (isinstance(value, str) and not value.strip()):
            if self.optional:
                return None
            raise UserError(f"{self.noun} is empty: give {self.allowed}.")
        if self.many:
            return self._read_many(value)
        if value in self.also or value in self.words:
            return value
        if self.convert:
            return self.convert(value) if isinstance(value, str) else value
        if self.kind is bool:
            return self._read_switch(value)
        if self.kind in (int, float):
            return self._read_number(value)
        if self.closed and value not in self.choices:
            raise UserError(f"{self.noun} {WRONG.repr(value)} is unknown: choose {self.allowed}.")
        return self.kind(value)

    def _read_many(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, str):
            return tuple(value)
        if self.convert:
            return cast("tuple[str, ...]", self.convert(value))
        if not self.separate:
            return (value,)
        if values := tuple(part.strip() for part in value.split(",") if part.strip()):
            return values
        raise UserError(f"{self.noun} {WRONG.repr(value)} is empty: give one, or several separated by commas.")

    def _read_switch(self, value: object) -> bool:
        if isinstance(value, str) and value.lower() not in (*YES, *NO):
            raise UserError(f"{self.noun} {WRONG.repr(value)} is neither on nor off: give true or false.")
        return value.lower() in YES if isinstance(value, str) else bool(value)

    def _read_number(self, value: Any) -> int | float:
        least, most = cast("tuple[float, float]", (self.least, self.most))
        try:
            number = float(cast("Any", None) if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{self.noun} {WRONG.repr(value)} is not a number: give {self.allowed}.") from None
        if not least <= number <= most or (self.kind is int and not number.is_integer()):
            shown = str(value) if isinstance(value, int) and abs(value) < 1e15 else f"{number:g}"
            raise UserError(f"{self.noun} {shown} is not allowed: give {self.allowed}.")
        return cast("int | float", self.kind(number))


def setting(default: Any = MISSING, **attributes: Any) -> Any:
    """A dataclass field that is a setting; attributes: of its Setting."""
    return dataclasses.field(default=default, metadata={"setting": Setting(**attributes)})


@cache
def settings_of(config: type) -> dict[str, Setting]:
    """The settings that a dataclass declares, by name, in order."""
    hints = get_type_hints(config)
    return {
        field.name: _complete(field.metadata["setting"], field.name, hints[field.name], field.default)
        for field in dataclasses.fields(config)
        if "setting" in field.metadata
    }


def read_all(config: object) -> None:
    """Check the settings of a frozen dataclass, and convert each to its declared type. Raises UserError."""
    kind: type = type(config)
    for name, declared in settings_of(kind).items():
        object.__setattr__(config, name, declared.read(getattr(config, name)))


def titles(entries: Iterable[Any]) -> dict[str, str]:
    """Choices from entries of the registry."""
    return {entry.name: entry.title for entry in entries}


def _complete(declared: Setting, name: str, hint: Any, default: Any) -> Setting:
    """The setting with name, type and default of its field."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    first = next(part for part in parts if part is not NoneType)
    kind: type = str if get_origin(first) is tuple else first
    choices = {member.value: member.label for member in kind} if issubclass(kind, Choice) else declared.choices
    return dataclasses.replace(
        declared,
        name=name,
        noun=declared.noun or name.replace("_", " ").capitalize(),
        flag=name if declared.flag is None else declared.flag,
        public=declared.public or name,
        choices=choices,
        hint=hint,
        default=None if default is MISSING else default,
        kind=kind,
        optional=NoneType in parts,
    )
