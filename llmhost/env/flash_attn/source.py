"""The source of flash-attn: from the store, else from the user's index or find-links."""

from __future__ import annotations

import os
import shutil
import ssl
import tarfile
import tomllib
import zlib
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from llmhost.env.flash_attn.store import SOURCES, file_sha256
from llmhost.env.pip_config import mask
from llmhost.env.uv import Uv
from llmhost.errors import EngineError

FETCH = "fetch the source of flash-attn"
KNOWN = {"2.8.3.post2": "d0f9f0b08a986cdeadbffcf5ec8b3a8f514366c68ad1853d3ab061bc83cc340b"}
"""SHA-256 of the source archives of tested versions (PyPI)."""
SECONDS = 60.0


def fetch_source(store: Path, version: str, python: str | Path, uv: Uv) -> Path:
    """The source archive in the store, fetched when it is not there; checked in any case.

    ``python`` is the interpreter that it is for. Raises EngineError when no index has it, when it cannot be fetched,
    or when it is not what was published.
    """
    kept = store / SOURCES / f"flash_attn-{version}.tar.gz"
    if kept.is_file():
        _require(kept, KNOWN.get(version, ""), "the source that is kept")
        return kept
    import httpx  # noqa: PLC0415 -- half a second that only a download needs

    uv.progress.started(FETCH)
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    url, sha256 = _locate(kept.parent, version, python, uv)
    part = kept.with_name(f".{kept.name}.part")
    try:
        _download(url, part, {**os.environ, **uv.settings.env})
        _require(part, KNOWN.get(version) or sha256, mask(url))
        os.replace(part, kept)
    except httpx.HTTPError as e:
        raise EngineError(
            f"cannot fetch the source of flash-attn from {mask(url)}: {mask(str(e)) or type(e).__name__}",
            f"check the network and proxy, or put flash_attn-{version}.tar.gz into {kept.parent}",
        ) from e
    finally:
        part.unlink(missing_ok=True)
    uv.progress.finished(FETCH, f"{kept.stat().st_size / 1e6:.1f} MB")
    return kept


def unpack(archive: Path, folder: Path) -> Path:
    """The source tree in ``folder``, unpacked once: what was compiled in it stays valid."""
    tree = folder / "src"
    if tree.is_dir():
        return tree
    scratch = folder / ".unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (top,) = scratch.iterdir()
    except (tarfile.TarError, EOFError, ValueError, zlib.error) as e:
        raise EngineError(
            f"{archive} cannot be unpacked: {e}", f"remove it: {archive.name} is fetched again then"
        ) from e
    os.replace(top, tree)
    scratch.rmdir()
    return tree


def _locate(folder: Path, version: str, python: str | Path, uv: Uv) -> tuple[str, str]:
    """Where the archive is, and its SHA-256 as the index has it ("" without one)."""
    wanted, lock = folder / "flash-attn.in", folder / "pylock.flash-attn.toml"
    wanted.write_text(f"flash-attn=={version}\n")
    lock.unlink(missing_ok=True)
    command = ["pip", "compile", str(wanted), "--no-deps", "--no-binary", "flash-attn", "--python", str(python)]
    try:
        if failure := uv.run([*command, "--format", "pylock.toml", "--no-header", "-o", str(lock)]):
            raise failure.as_error(f"find the source of flash-attn {version}", uv.log)
        package: dict[str, Any] = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"][0]
    finally:
        wanted.unlink(missing_ok=True)
    lock.unlink(missing_ok=True)
    place = package["sdist"]
    url = place.get("url") or (folder / place["path"]).resolve().as_uri()
    return url, place.get("hashes", {}).get("sha256", "")


def _download(url: str, target: Path, env: Mapping[str, str]) -> None:
    if urlsplit(url).scheme == "file":
        shutil.copyfile(unquote(urlsplit(url).path), target)
        return
    import httpx  # noqa: PLC0415

    trust = _trust(url, env)
    routes = {
        pattern: httpx.HTTPTransport(verify=trust, proxy=proxy) if proxy else None
        for pattern, proxy in proxies_of(env, urlsplit(url).hostname or "").items()
    }
    with (
        httpx.Client(
            # pip's proxy stands in ``env`` only, so httpx cannot read it by itself.
            verify=trust,
            mounts=routes,
            auth=_login(url, env),
            follow_redirects=True,
            timeout=SECONDS,
            trust_env=False,
        ) as client,
        client.stream("GET", url) as answer,
        target.open("wb") as file,
    ):
        answer.raise_for_status()
        for chunk in answer.iter_bytes():
            file.write(chunk)


def proxies_of(env: Mapping[str, str], host: str = "") -> dict[str, str]:
    """Patterns of addresses as httpx takes them, and the proxy for each, "" for none; small names win, as in uv.

    httpx has no pattern for a network: of those without a proxy the one that ``host`` is in counts as the host itself.
    """

    def value(name: str) -> str:
        return env.get(name.lower()) or env.get(name) or ""

    written = [name.strip() for name in value("NO_PROXY").split(",") if name.strip()]
    exempt = [host if "/" in name else name for name in written if "/" not in name or _is_in(host, name)]
    if "*" in exempt:
        return {}
    found = {f"{scheme.lower()}://": value(f"{scheme}_PROXY") or value("ALL_PROXY") for scheme in ("HTTP", "HTTPS")}
    usable = {scheme: proxy if "://" in proxy else f"http://{proxy}" for scheme, proxy in found.items() if proxy}
    return {**usable, **{_pattern(name): "" for name in exempt}}


def _is_in(host: str, network: str) -> bool:
    """Whether a host that is an address belongs to a network; False where one of them is none."""
    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def _pattern(name: str) -> str:
    """An address as it is; a name with all that is below it."""
    try:
        address = ip_address(name.strip("[]"))
    except ValueError:
        return f"all://{name}" if name == "localhost" else f"all://*{name}"
    return f"all://[{address}]" if address.version == 6 else f"all://{address}"


def _trust(url: str, env: Mapping[str, str]) -> ssl.SSLContext | bool:
    """Certificates as uv uses them."""
    if (urlsplit(url).hostname or "") in env.get("UV_INSECURE_HOST", "").split():
        return False
    return ssl.create_default_context(cafile=env.get("SSL_CERT_FILE"), capath=env.get("SSL_CERT_DIR"))


def _login(url: str, env: Mapping[str, str]) -> tuple[str, str] | None:
    """User and password of the index on the same host; uv leaves them out of the addresses that it prints."""
    for index in (*env.get("UV_DEFAULT_INDEX", "").split(), *env.get("UV_INDEX", "").split()):
        parts = urlsplit(index)
        if parts.hostname == urlsplit(url).hostname and parts.username:
            return parts.username, parts.password or ""
    return None


def _is_archive(file: Path) -> bool:
    try:
        return tarfile.is_tarfile(file)
    except (EOFError, zlib.error):  # begins as one
        return False


def _require(file: Path, sha256: str, what: str) -> None:
    if not _is_archive(file):
        page = file.read_bytes()[:200].lstrip().lower().startswith((b"<!doctype", b"<html"))
        raise EngineError(
            f"{what} is {'a web page' if page else 'no archive'} instead of the source of flash-attn",
            "a proxy or a mirror answers in its place: see what it says in a browser" if page else f"remove {file}",
        )
    if sha256 and (actual := file_sha256(file)) != sha256:
        raise EngineError(
            f"{what} is not the source of flash-attn that was published: its SHA-256 is {actual[:24]},"
            f" not {sha256[:24]}",
            "the index or a proxy serves an altered or damaged file: ask its owner"
            if "://" in what
            else f"remove {file}",
        )
