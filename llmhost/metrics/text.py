"""Prometheus' text format (version 0.0.4): label what others say, merge it with our own, and read it back.

The format wants all lines of a metric in one place, with one TYPE; three engines say the same metrics three times.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_LABELS = r'(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\.)*",?)*'
_VALUE = r"[-+]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|Inf|NaN)"
_SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABELS})\}})? +({_VALUE})(?: +-?[0-9]+)?")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram|summary|untyped)")
_HELP = re.compile(rf"# HELP ({_NAME}) (.*)")
_PARTS = ("_bucket", "_sum", "_count")


class Page:
    """Metrics by family, in the order in which the families came."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}
        self._helps: dict[str, str] = {}
        self._lines: dict[str, list[str]] = {}

    def add(self, name: str, kind: str, told: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """One sample of our own."""
        self._kinds.setdefault(name, kind)
        self._helps.setdefault(name, told)
        self._lines.setdefault(name, []).append(f"{name}{_braced(_written(labels or {}))} {number(value)}")

    def merge(self, text: str, label: Callable[[str], Mapping[str, str] | None]) -> int:
        """Take over what another program says; returns how many samples.

        `label` is asked for each sample with its labels as they are written, and answers with those to add, or None
        to leave the sample out. A label that is already there is renamed to ``exported_…``, as Prometheus does. What
        is not in the format is left out: one broken line must not cost the whole page.
        """
        taken, family, kinds = 0, "", dict[str, str]()
        for line in _lines(text):
            if line.startswith("#"):
                family = self._comment(line, kinds) or family
                continue
            found = _SAMPLE.fullmatch(line)
            if found is None or found[1].endswith("_created"):  # when a counter began: doubles the page, says nothing
                continue
            labels = found[2] or ""
            added = label(labels)
            if added is not None:
                self._take(found[1], _family_of(found[1], family, kinds), labels, added, found[3])
                taken += 1
        return taken

    def _comment(self, line: str, kinds: dict[str, str]) -> str:
        found = _TYPE.fullmatch(line)
        if found is not None:
            kinds[found[1]] = found[2]
            self._kinds.setdefault(found[1], found[2])
            return found[1]
        found = _HELP.fullmatch(line)
        if found is not None:
            self._helps.setdefault(found[1], found[2])
            return found[1]
        return ""

    def _take(self, name: str, family: str, labels: str, added: Mapping[str, str], value: str) -> None:
        if any(f"{key}=" in labels for key in added):
            labels = _LABEL.sub(lambda m: f"exported_{m[0]}" if m[1] in added else m[0], labels)
        both = ",".join(part for part in (_written(added), labels.rstrip(",")) if part)
        self._lines.setdefault(family, []).append(f"{name}{_braced(both)} {value}")

    def render(self) -> str:
        """The whole page."""
        parts = []
        for family, lines in self._lines.items():
            if family in self._helps:
                parts.append(f"# HELP {family} {self._helps[family]}\n")
            if family in self._kinds:
                parts.append(f"# TYPE {family} {self._kinds[family]}\n")
            parts.append("\n".join(lines))
            parts.append("\n")
        return "".join(parts)


def _family_of(name: str, current: str, kinds: Mapping[str, str]) -> str:
    if name == current:
        return name
    if kinds.get(current) in ("histogram", "summary") and name in [current + part for part in _PARTS]:
        return current
    return name


def _lines(text: str) -> Iterator[str]:
    # Not splitlines: the value of a label may hold what that takes for the end of a line.
    return (line.rstrip("\r ") for line in text.split("\n"))


def _written(labels: Mapping[str, str]) -> str:
    return ",".join(f'{key}="{escape(value)}"' for key, value in labels.items())


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def escape(value: str) -> str:
    """The value of a label as it stands between its quotes."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _unescape(value: str) -> str:
    return re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), value) if "\\" in value else value


def number(value: float) -> str:
    """A number without a superfluous ``.0``."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def label_value(labels: str, key: str) -> str | None:
    """The value of one label in ``a="b",c="d"``; None when it is not there."""
    return next((_unescape(m[2]) for m in _LABEL.finditer(labels) if m[1] == key), None)


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of every sample."""
    for line in _lines(text):
        found = None if line.startswith("#") else _SAMPLE.fullmatch(line)
        if found is not None:
            yield found[1], {m[1]: _unescape(m[2]) for m in _LABEL.finditer(found[2] or "")}, float(found[3])
