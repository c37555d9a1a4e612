"""How a site's own topics are read: `plant/{line}/{device}/{metric}`.

A level is literal, a wildcard (`+`, and `#` at the end), or holds placeholders: `line-{line}`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]{0,31})\}")
LONGEST = 1024
MOST_LEVELS = 32


@dataclass(frozen=True)
class TopicTemplate:
    """A template of topics. Make it with `parse`."""

    text: str

    @staticmethod
    def parse(text: str) -> "TopicTemplate":
        """Return the template. Raises ValueError, saying what is wrong with it."""
        if not 0 < len(text) <= LONGEST or "\0" in text:
            raise ValueError(f"a topic has 1 to {LONGEST} characters and no NUL")
        levels = text.split("/")
        if len(levels) > MOST_LEVELS:
            raise ValueError(f"a topic has at most {MOST_LEVELS} levels")
        for position, level in enumerate(levels):
            literal = _PLACEHOLDER.sub("", level)
            if "{" in literal or "}" in literal:
                raise ValueError(f"a placeholder is {{name}} in small letters, not {level!r}")
            if ("#" in level and (level != "#" or position + 1 < len(levels))) or (
                "+" in level and level != "+"
            ):
                raise ValueError("+ is a level of its own, and # the last")
            if "}{" in level:
                raise ValueError(f"something must stand between the placeholders of {level!r}")
        names = _PLACEHOLDER.findall(text)
        if len(names) != len(set(names)):
            raise ValueError("a placeholder stands twice")
        return TopicTemplate(text)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of its placeholders."""
        return frozenset(_PLACEHOLDER.findall(self.text))

    @cached_property
    def topic_filter(self) -> str:
        """What to subscribe to at a broker."""
        return "/".join("+" if "{" in level else level for level in self.text.split("/"))

    def match(self, topic: str) -> Mapping[str, str] | None:
        """Return what stands for each placeholder in a topic, None if it is not of this template."""
        levels = topic.split("/")
        wanted, has_rest = self._levels
        # `plant/#` is `plant` itself, too.
        if len(levels) < len(wanted) or (len(levels) > len(wanted) and not has_rest):
            return None
        found: dict[str, str] = {}
        for parts, level in zip(wanted, levels, strict=False):
            if parts is not None and not _match_level(parts, level, found):
                return None
        return found

    @cached_property
    def _levels(self) -> tuple[list[list[str] | None], bool]:
        """Each level as literals with the placeholders' names between them; None for `+`."""
        levels = self.text.split("/")
        if levels[0] == "$share":
            # A shared subscription: its messages come with their own topics.
            levels = levels[2:]
        has_rest = bool(levels) and levels[-1] == "#"
        if has_rest:
            levels = levels[:-1]
        return [None if level == "+" else _PLACEHOLDER.split(level) for level in levels], has_rest


def fill(expression: str, values: Mapping[str, str]) -> str:
    """Return an expression such as `{line}/{device}` with its placeholders filled in."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], expression)


def names_in(expression: str) -> frozenset[str]:
    """Return the names of an expression's placeholders."""
    return frozenset(_PLACEHOLDER.findall(expression))


def _match_level(parts: list[str], level: str, found: dict[str, str]) -> bool:
    """Match one level from left to right, each placeholder as short as may be, but not empty.

    By hand: a pattern of several placeholders takes the square, the cube and more of the level's
    length, and whoever writes the topics may be no friend of ours.
    """
    if not level.startswith(parts[0]):
        return False
    at, last = len(parts[0]), len(parts) - 1
    if last == 0:
        return at == len(level)
    for index in range(1, last, 2):
        literal = parts[index + 1]
        if index + 1 == last:
            end = len(level) - len(literal)
            if end <= at or not level.endswith(literal):
                return False
        else:
            end = level.find(literal, at + 1)
            if end < 0:
                return False
        found[parts[index]] = level[at:end]
        at = end + len(literal)
    return True
