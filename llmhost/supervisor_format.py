"""How values are written into supervisord's configuration, so that they come out of its parser unchanged."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from llmhost.errors import RenderError

_COMMENT = re.compile(r"(\s)([;#])")


def quote_command(argv: Sequence[str]) -> str:
    """The value of ``command=`` that supervisord 4.3 splits into exactly `argv`.

    White space before ``;`` or ``#`` starts a comment there even inside quotes, hence the empty quotes between them;
    ``%`` starts an expansion. Raises RenderError for what no quoting can carry: newlines and NUL.
    """
    return " ".join(_quote(word) for word in argv)


def _quote(word: str) -> str:
    # configparser splits lines as str.splitlines does not: at \n only; \r would be stripped or read as a newline.
    for character, name in (("\n", "a newline"), ("\r", "a carriage return"), ("\0", "a NUL")):
        if character in word:
            raise RenderError(
                f"an argument of the engine contains {name}: {word!r}",
                "supervisord cannot carry it; write it without (JSON values may be written on one line)",
            )
    return _COMMENT.sub(r"\1''\2", shlex.quote(word)).replace("%", "%%")


def quote_value(value: str) -> str:
    """Any other value, a path for the most part: it cannot be quoted, so what the parser would change is refused.

    Raises RenderError for ``%`` (expanded once in some keys and twice in others), newlines, outer white space and
    white space before ``;`` or ``#``.
    """
    if value != value.strip() or not value.isprintable() or "%" in value or _COMMENT.search(value):
        raise RenderError(
            f"supervisord cannot hold the path {value!r}: of '%', outer white space, white space before ';' or '#',"
            " and characters that do not print it has one",
            "choose another path for the home",
        )
    return value
