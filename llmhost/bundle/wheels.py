"""Wheels rewritten: packed without compression, and without files that the target has no use for.

What is compressed once cannot be compressed better a second time, so wheels that travel inside a compressed bundle
hold their files as they are. Such a wheel installs like the original.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path

MARKER = "LLMHOST-STRIPPED.json"
"""In the .dist-info of a wheel that was stripped: which files went and why."""
BUILD_TAG = "1stripped"
"""In the file name of such a wheel, so that nobody takes it for the original."""
EXECUTABLE = 0o100755 << 16


def rewrite(source: Path, directory: Path, *, stored: bool, strip: Mapping[str, str] | None = None) -> Path:
    """Write the wheel into a directory, ``stored`` without compression, without files matching a pattern of ``strip``.

    ``strip`` says why for each pattern. A wheel that loses files gets a RECORD without them, a marker file, and a
    build tag. Returns where the new wheel is; raises OSError and zipfile.BadZipFile.
    """
    with zipfile.ZipFile(source) as old:
        gone = {i.filename: why for i in old.infolist() if (why := _matching(i.filename, strip or {}))}
        target = directory / (_tagged(source.name) if gone else source.name)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as new:
            for info in sorted(old.infolist(), key=lambda i: i.filename):
                if info.filename not in gone:
                    _copy(old, info, new, gone)
            if gone:
                name = f"{_dist_info(old)}/{MARKER}"
                new.writestr(name, json.dumps({"left out by": "llmhost bundle create --slim", "files": gone}, indent=1))
    return target


def _matching(name: str, strip: Mapping[str, str]) -> str:
    return next((why for pattern, why in strip.items() if fnmatch.fnmatchcase(name, pattern)), "")


def _tagged(name: str) -> str:
    """``vllm-0.26.0-cp38-…`` -> ``vllm-0.26.0-1stripped-cp38-…``; an own build tag gives way."""
    parts = name.split("-")
    return "-".join([*parts[:2], BUILD_TAG, *parts[-3:]])


def _dist_info(wheel: zipfile.ZipFile) -> str:
    return next(n.partition("/")[0] for n in wheel.namelist() if n.endswith(".dist-info/WHEEL") and n.count("/") == 1)


def _copy(old: zipfile.ZipFile, info: zipfile.ZipInfo, new: zipfile.ZipFile, gone: Mapping[str, str]) -> None:
    plain = zipfile.ZipInfo(info.filename, info.date_time)
    plain.external_attr = info.external_attr
    plain.compress_type = new.compression
    if gone and info.filename == f"{_dist_info(old)}/RECORD":
        new.writestr(plain, _without(old.read(info).decode(), gone))
        return
    with old.open(info) as source, new.open(plain, "w", force_zip64=info.file_size > 2**31) as target:
        while block := source.read(1 << 20):
            target.write(block)


def _without(record: str, gone: Mapping[str, str]) -> str:
    """RECORD without lines of these files (and with the marker, which needs no digest)."""
    rows = [row for row in csv.reader(io.StringIO(record)) if row and row[0] not in gone]
    own = next(row[0] for row in rows if row[0].endswith(".dist-info/RECORD"))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*rows, [f"{own.rpartition('/')[0]}/{MARKER}", "", ""]])
    return text.getvalue()


def stripped_of(wheel: Path) -> dict[str, str]:
    """Files that a wheel lost, and why; empty for an original one."""
    with zipfile.ZipFile(wheel) as archive:
        name = f"{_dist_info(archive)}/{MARKER}"
        if name not in archive.namelist():
            return {}
        return dict(json.loads(archive.read(name))["files"])


def requirements_of(wheel: Path) -> tuple[str, ...]:
    """What a wheel requires, without its extras."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"{_dist_info(archive)}/METADATA").decode()
    headers = HeaderParser().parsestr(text).get_all("Requires-Dist") or []
    return tuple(line for line in headers if "extra ==" not in line)


def unpacked_size(wheel: Path) -> int:
    """Bytes of its files."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(info.file_size for info in archive.infolist())


def pack(target: Path, files: Sequence[tuple[str, bytes, bool]]) -> None:
    """Write a zip of (name, content, executable), RECORD last as the format asks for."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, executable in files:
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = EXECUTABLE if executable else 0o100644 << 16
            archive.writestr(info, content)
