"""Entry point: runs the command line and turns every expected error into two lines and an exit status."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Sequence

from click import ClickException
from click.exceptions import Abort

from llmhost.cli import cli, console
from llmhost.errors import Interrupted, LlmhostError

MACHINE_TROUBLE = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENAMETOOLONG,
})  # fmt: skip
"""What the kernel says that no command is to blame for."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `llmhost` and exit with its status."""
    # As Ctrl-C: programs that run for us end with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a log may hold what the terminal's encoding cannot
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run `llmhost` and return its exit status; the one place where errors are caught."""
    debug = "--debug" in argv
    try:
        # Not standalone: click would print errors in its own words and exit by itself.
        result = cli.main(args=list(argv), prog_name="llmhost", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except LlmhostError as e:
        if debug:
            raise
        return _report(e.message, e.hint, e.exit_code)
    except ClickException as e:
        return _report(e.format_message(), _usage_hint(e), e.exit_code)
    except (KeyboardInterrupt, Abort):
        if debug:
            raise
        return _report("interrupted", "the same command again goes on from here", Interrupted.exit_code)
    except BrokenPipeError:
        # The reader (head, less) has gone; Python must not complain about it again while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as e:
        if debug:
            raise
        return _unexpected(e)


def _unexpected(error: Exception) -> int:
    """A bug of ours, or a machine on which nothing more can be written or opened."""
    if isinstance(error, OSError) and error.errno in MACHINE_TROUBLE:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _report(f"{where}{error.strerror}", "see `df -h`, `df -i`, `ulimit -n` and `dmesg`", 1)
    message = f"internal error: {type(error).__name__}: {error}"
    return _report(
        message, "this is a bug in llmhost: run the command again with --debug and report what it prints", 70
    )


def _usage_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"see `{context.command_path} --help`" if context else "see `llmhost --help`"


def _report(message: str, hint: str, exit_code: int) -> int:
    console.report_error(message, hint)
    return exit_code


if __name__ == "__main__":
    main()
