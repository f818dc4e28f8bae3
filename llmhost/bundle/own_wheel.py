"""The wheel of the llmhost that runs: built from its checkout, or packed again from where it is installed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import llmhost
from llmhost.bundle.wheels import pack
from llmhost.env.uv import Uv
from llmhost.errors import BundleError

LEFT_OUT = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")
"""Files of .dist-info that belong to an installation; RECORD is written anew."""


def make_own_wheel(directory: Path, uv: Uv) -> Path:
    """Write llmhost's wheel into a directory; raises BundleError when it cannot be made."""
    checkout = Path(llmhost.__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        failure = uv.run(["build", "--wheel", "--out-dir", str(directory), "--no-create-gitignore", str(checkout)])
        if failure:
            error = failure.as_error("build llmhost's own wheel", uv.log)
            raise BundleError(error.message, error.hint)
        return next(directory.glob("llmhost-*.whl"))
    try:
        return _repacked(distribution("llmhost"), directory)
    except (PackageNotFoundError, OSError, StopIteration) as e:
        raise BundleError(f"llmhost's own files are incomplete: {e}", "install llmhost again") from e


def _repacked(installed: Distribution, directory: Path) -> Path:
    """The wheel that an installation was made from, but for scripts, which an installer makes anew."""
    found = [f for f in installed.files or () if ".." not in f.parts and f.suffix != ".pyc"]
    info = next(f.parts[0] for f in found if f.parts[0].endswith(".dist-info"))
    plain = sorted(f for f in found if not (f.parts[0] == info and f.name in LEFT_OUT))
    files = [(str(f), Path(str(f.locate())).read_bytes(), False) for f in plain]
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content, _ in files)
    files.append((f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode(), False))
    target = directory / f"llmhost-{installed.version}-py3-none-any.whl"
    pack(target, files)
    return target


def own_digest() -> str:
    """Tells one llmhost from another of the same version; the same for a checkout and for what is installed from it."""
    package = Path(llmhost.__file__).parent
    roots = {"llmhost": package}
    if (package.parent / "pyproject.toml").is_file():  # a wheel has these below llmhost
        roots |= {f"llmhost/{name}": package.parent / name for name in ("conf_templates", "systemd")}
    found = hashlib.sha256()
    for name, path in sorted(_contents(roots)):
        found.update(f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:12]


def _contents(roots: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    for name, root in roots.items():
        for path in root.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield f"{name}/{path.relative_to(root).as_posix()}", path


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
