"""What a parameter's value may be: its kind, its bounds, and the words of the refusal.

Knows no parameter by name; core/sampling.py says which has which limit.
"""

import re
from dataclasses import dataclass

NAME_PATTERN = "[a-z0-9-]{1,40}"


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number of ``low`` to ``high``; or None, where it may be left open."""

    low: int
    high: int
    may_be_none: bool = False

    def refusal(self, value: object) -> str | None:
        """Why the value is refused, or None when it is allowed."""
        if value is None and self.may_be_none:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high:
            return None
        return f"must be a whole number from {self.low} to {self.high}, not {shown(value)}"


@dataclass(frozen=True, slots=True)
class Real:
    """A number of ``low`` to ``high``, or over ``low`` where that end is open. NaN is none."""

    low: float
    high: float
    is_open: bool = False

    def refusal(self, value: object) -> str | None:
        """Why the value is refused, or None when it is allowed."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and self.low <= value <= self.high and not (self.is_open and value == self.low):  # type: ignore[operator]
            return None
        bounds = (
            f"over {self.low:g} and at most {self.high:g}" if self.is_open else f"from {self.low:g} to {self.high:g}"
        )
        return f"must be a number {bounds}, not {shown(value)}"


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def refusal(self, value: object) -> str | None:
        """Why the value is refused, or None when it is allowed."""
        return None if isinstance(value, bool) else f"must be true or false, not {shown(value)}"


@dataclass(frozen=True, slots=True)
class Text:
    """Text of 1 to ``most`` characters that can be sent (no half of a surrogate pair)."""

    most: int

    def refusal(self, value: object) -> str | None:
        """Why the value is refused, or None when it is allowed."""
        if not isinstance(value, str) or not 1 <= len(value) <= self.most:
            return f"must be text of 1 to {self.most} characters, not {shown(value)}"
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"is no valid Unicode text: {error.reason}"
        return None


@dataclass(frozen=True, slots=True)
class Name:
    """A name as a cluster's YAML has them: 1 to 40 lower-case letters, digits and hyphens."""

    def refusal(self, value: object) -> str | None:
        """Why the value is refused, or None when it is allowed."""
        if isinstance(value, str) and re.fullmatch(NAME_PATTERN, value):
            return None
        return f"must be 1 to 40 lower-case letters, digits and hyphens, not {shown(value)}"


@dataclass(frozen=True, slots=True)
class Several:
    """A tuple of at most ``most`` items, each within a limit of its own."""

    item: "Limit"
    most: int

    def refusal(self, value: object) -> str | None:
        """Why the value is refused, or None when it is allowed."""
        if not isinstance(value, tuple):
            return f"must be several values, not {shown(value)}"
        if len(value) > self.most:
            return f"has {len(value)} entries, over {self.most}"
        return next((f"has an entry that {why}" for item in value if (why := self.item.refusal(item))), None)


@dataclass(frozen=True, slots=True)
class ByToken:
    """A tuple of pairs (token id, value), each id once, at most ``most`` of them."""

    value: "Limit"
    most: int
    token_id: Whole = Whole(0, 2**31 - 1)

    def refusal(self, value: object) -> str | None:
        """Why the value is refused, or None when it is allowed."""
        if not isinstance(value, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
            return f"must give a value for each of some token ids, not {shown(value)}"
        if len(value) > self.most:
            return f"has {len(value)} entries, over {self.most}"
        for token_id, item in value:
            why = self.token_id.refusal(token_id)
            if why:
                return f"has a token id that {why}"
            why = self.value.refusal(item)
            if why:
                return f"has for token {token_id} a value that {why}"
        if len({token_id for token_id, _ in value}) < len(value):
            return "names a token id twice"
        return None


Limit = Whole | Real | Flag | Text | Name | Several | ByToken


def shown(value: object) -> str:
    """A value in one short line, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # Python does not spell huge numbers
        return "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
