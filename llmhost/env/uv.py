"""Runs uv: follows what it prints, keeps a log, and turns a failure into one sentence with a remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llmhost.env.log import SetupLog
from llmhost.env.pip_config import UvSettings, mask
from llmhost.env.progress import Progress
from llmhost.errors import EngineError
from llmhost.run import capture, follow

DOWNLOAD = "download packages"
RESOLVE = "resolve packages"
INSTALL = "install packages"

SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
DOWNLOADING = re.compile(r"\s*Downloading (\S+).* \(([\d.]+) ?([KMG]?i?B)\)")
DOWNLOADED = re.compile(r"\s*Downloaded (\S+)")
FINISHED = (
    (RESOLVE, re.compile(r"Resolved (\d+ packages?) in ")),
    (DOWNLOAD, re.compile(r"Prepared (\d+ packages?) in ")),
    (INSTALL, re.compile(r"Installed (\d+ packages?) in ")),
)
"""What uv prints when a stage is over, in the order of the stages."""


def find_uv() -> str:
    """The path of uv's executable, which comes with the package of that name. Raises EngineError without it."""
    from uv import find_uv_bin  # noqa: PLC0415 -- only a setup needs it

    try:
        return find_uv_bin()
    except FileNotFoundError as e:
        raise EngineError("uv's executable is missing", "install llmhost again, with its uv package") from e


@dataclass(frozen=True)
class Uv:
    """A uv with the user's settings; ``cwd`` is where it looks for a configuration of its own."""

    binary: str
    settings: UvSettings
    cwd: Path
    log: SetupLog
    progress: Progress
    env: Mapping[str, str]
    """More environment, for every call."""

    def run(self, arguments: Sequence[str], *, follow_stages: bool = False) -> UvFailure | None:
        """Run it to its end; None when all went well, else what went wrong."""
        reader = _Reader(self.log, self.progress if follow_stages else None)
        argv = [self.binary, *arguments, "--color", "never", *self.settings.arguments]
        self.log.write(f"$ {' '.join(argv)}")
        status = follow(argv, reader.line, env={**self.settings.env, **self.env}, cwd=self.cwd)
        if status == 0:
            return None
        return UvFailure(tuple(reader.errors) or (f"uv ended with status {status}",), mask("\n".join(reader.tail)))


def default_cache_dir(binary: str) -> Path:
    """Where uv keeps its cache unless it is told otherwise."""
    return Path(capture([binary, "cache", "dir", "--color", "never"]).stdout.strip())


class _Reader:
    """Takes uv's lines: all go to the log, stages to the progress, errors are kept."""

    def __init__(self, log: SetupLog, progress: Progress | None) -> None:
        self.log = log
        self.progress = progress
        self.errors: list[str] = []
        self.tail: list[str] = []
        self.sizes: dict[str, int] = {}
        self.done = 0
        self.stages = list(FINISHED)
        if progress:
            progress.started(self.stages[0][0])

    def line(self, text: str) -> None:
        text = mask(text)
        self.log.write(text)
        self.tail = [*self.tail[-40:], text]
        if found := re.match(r"(?:error: |\s*cause: |\s*Caused by: |\s*[×╰─▶├]+ *)(.+)", text):
            self.errors.append(found[1].strip())
        elif self.errors and re.match(r"\s{4,}\S", text):  # a wrapped line goes on with its cause
            self.errors[-1] += f" {text.strip(' │')}"
        if self.progress:
            self._download(text)
            self._stage(text, self.progress)

    def _download(self, text: str) -> None:
        if found := DOWNLOADING.match(text):
            self.sizes[found[1]] = int(float(found[2]) * SIZES[found[3]])
        elif found := DOWNLOADED.match(text):
            self.done += self.sizes.get(found[1], 0)
        else:
            return
        if self.progress:
            self.progress.advanced(DOWNLOAD, self.done, sum(self.sizes.values()), "bytes")

    def _stage(self, text: str, progress: Progress) -> None:
        """Finish the stage that the line is about; stages before it had nothing to do."""
        for index, (name, pattern) in enumerate(self.stages):
            if found := pattern.match(text):
                if index:
                    progress.finished(self.stages[0][0], "already there")
                    progress.started(name)
                progress.finished(name, found[1])
                del self.stages[: index + 1]
                if self.stages:
                    progress.started(self.stages[0][0])
                return


@dataclass(frozen=True)
class UvFailure:
    """Why uv failed: ``errors`` from its ``error:`` line down to the root cause, ``output`` the end of what it said."""

    errors: tuple[str, ...]
    output: str

    def lacks(self, package: str) -> bool:
        """Did the resolution fail for want of (a version of) this package?"""
        name = re.escape(package)
        missing = rf"no version of {name}\b|\b{name} was not found|\b{name}\S* has no (wheels|usable)"
        return bool(re.search(missing, " ".join(self.errors)))

    def as_error(self, doing: str, log: SetupLog) -> EngineError:
        """One sentence and a remedy."""
        reason = self._lack_of_python() or re.sub(r"\{[^}]*\}", "", self._chain())
        return EngineError(f"cannot {doing}: {reason}", f"{self._remedy()}; the log is {log.path}")

    def _lack_of_python(self) -> str:
        """Why uv could not fetch a Python that the machine does not have; empty when that is not what failed."""
        failed = next((error for error in self.errors if re.search(PYTHON_DOWNLOAD, error, re.I)), "")
        if not failed:
            return ""
        place = f" from {urlsplit(url).netloc}" if (url := _first_url((failed,))) else ""
        why = "" if self.errors[-1] == failed else f": {self.errors[-1][:400].rstrip('.')}"
        return f"that Python is not on this machine and cannot be downloaded{place}{why}"

    def _chain(self) -> str:
        """The first cause says what, the last one why; the links between them are noise."""
        first, *causes = self.errors
        *context, root = dict.fromkeys((first, *causes[:1], *causes[-1:]))
        shortened = (f"{part[:140]}…" if len(part) > 140 else part.rstrip(".") for part in context)
        return ": ".join((*shortened, root[:400].rstrip(".")))

    def _remedy(self) -> str:
        text = "\n".join((*self.errors, self.output))
        remedy = next((remedy for pattern, remedy in REMEDIES if re.search(pattern, text, re.I)), "see what uv says")
        return remedy.format(source=_first_url(self.errors) or "the index or find-links")


def _first_url(texts: Sequence[str]) -> str:
    """The first web address in what uv says; empty when it names none."""
    return next((found[0] for text in texts if (found := re.search(r"https?://[^\s`'\"()<>]+", text))), "")


PYTHON_DOWNLOAD = (
    r"(failed to (download|fetch|extract)|error sending request|http status).*(python-build-standalone|cpython-\d)"
)
"""What uv says of a Python that it would install itself, in one line."""
REMEDIES = (
    (r"no space left|os error 28|disk quota", "free some disk space, or set UV_CACHE_DIR and LLMHOST_HOME elsewhere"),
    (
        r"certificate|invalid peer|UnknownIssuer",
        "name your CA file in pip's configuration (cert) or SSL_CERT_FILE, or trust the host (trusted-host)",
    ),
    (
        PYTHON_DOWNLOAD,
        "name one that is there as engine.python in llmhost.yaml (`llmhost facts` lists them), or a mirror of"
        " python-build-standalone in UV_PYTHON_INSTALL_MIRROR (a package index holds no Python)",
    ),
    (
        r"invalid package format|field Name not found|failed to (extract|unzip)|zip file|unexpected (eof|end)",
        "what {source} sent is no package: it is damaged or cut short, or a proxy or mirror sent a web page instead"
        " (a login?): fetch it with `curl -L` to see, check HTTPS_PROXY and NO_PROXY, then run it again, after"
        " `uv cache clean` if need be",
    ),
    (
        r"hash mismatch",
        "the index or a cache serves an altered or damaged file: ask its owner, or run `uv cache clean`",
    ),
    (
        r"\b(401|403|407)\b|unauthorized|forbidden",
        "check user and password of the index or proxy in pip's configuration",
    ),
    (
        r"dns error|connection refused|connect error|timed? ?out|network is unreachable|error sending request",
        "the package index cannot be reached: check the network and proxy, or name a mirror in pip's configuration"
        " (index-url, find-links), which is handed on to uv",
    ),
    (
        r"no interpreter found",
        "install such a Python, or name one that is there as engine.python in llmhost.yaml (`llmhost facts` lists"
        " them)",
    ),
    (
        r"\+cpu|no version of torch",
        "your index lacks the CPU build of torch: put its wheel into a directory and name it as find-links in pip's"
        " configuration",
    ),
    (
        r"was not found in the package registry",
        "none of the indexes has it, or one refuses its user and password, or what answers is a page of a proxy that"
        " wants a login: check pip's configuration (index-url, extra-index-url, proxy)",
    ),
    (
        r"no version of|no solution found",
        "no index has such a version: check engine.vllm in llmhost.yaml, that the mirror is complete, and that what"
        " answers is the index and not a page of a proxy that wants a login",
    ),
    (
        r"permission denied|os error 13",
        "this user must be able to write there: see the owner of the home and of uv's cache",
    ),
)
"""Patterns of what uv says -> what to do; the first that matches counts."""
