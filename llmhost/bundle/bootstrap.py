"""Installs llmhost from the bundle that this file lies in, without a network, and then what else is in the bundle.

    python3 bootstrap.py [--home DIR] [--prefix DIR]

It travels as a program of its own, with ``carried.py`` beside it, and needs nothing but Python's standard library; that
is why it prints and starts programs by itself.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from llmhost.bundle import carried
else:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    sys.dont_write_bytecode = True  # the bundle stays as it came
    try:
        import carried
    except Exception as e:  # an altered file may raise anything
        missing = isinstance(e, ModuleNotFoundError) and e.name == "carried"
        what = "missing" if missing else f"damaged ({type(e).__name__}: {e})"
        sys.exit(f"error: carried.py is {what} in {sys.path[0]}\nhint: copy it again: carried.py")

COMPLETE = ".complete"
"""In an installed llmhost: everything is there, it starts."""

LLMHOST_GROWTH = 3
"""An installed llmhost takes about so many times the size of its wheels (they are compressed, bytecode is added)."""


def _claim(home: Path) -> None:
    """Take a directory as llmhost itself would: one of its own, or one with nothing in it."""
    mark = home / ".llmhost"
    if home.exists() and not (mark.is_file() or (home / "llmhost.yaml").is_file() or not os.listdir(home)):
        raise carried.BundleProblem(
            f"{home} is not a home of llmhost and not empty", "name an empty or new one with --home"
        )
    home.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _require_owner(home: Path, prefix: Path, here: Path) -> None:
    """Root installs nothing into a home of somebody else, who could not read it, and may have made links there."""
    if os.geteuid() != 0 or not home.exists() or (uid := home.stat().st_uid) == 0:
        return
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    raise carried.BundleProblem(
        f"{home} belongs to {name}, and you are root",
        f"install llmhost alone: sh {here}/install.sh --only-llmhost --home NEW; then the rest as {name}:"
        f" sudo -u {name} {prefix}/bin/llmhost --home {home} bundle install {here}",
    )


def _install_llmhost(contents: Path, manifest: dict[str, Any], prefix: Path) -> Path:
    """Make an environment with llmhost below ``prefix``; it gets its name there when it is complete."""
    wheels = contents / "wheels"
    own = [contents / e["path"] for e in manifest["files"] if e["kind"] == "llmhost"]
    if not own:
        raise carried.BundleProblem(
            "this bundle holds no llmhost", "use `llmhost bundle install` on a machine that has it"
        )
    version = prefix / f"llmhost-{manifest['llmhost']}-{manifest['id']}"
    if (version / COMPLETE).exists():
        return version / "bin/llmhost"
    shutil.rmtree(version, ignore_errors=True)  # half made: nobody runs from it
    carried.require_room(prefix, LLMHOST_GROWTH * sum(p.stat().st_size for p in own), "install llmhost")
    tools = prefix / ".tools"
    uv = _unpack_uv(next(p for p in own if p.name.startswith("uv-")), tools)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "PIP_", "PYTHON", "VIRTUAL_ENV"))}
    env = {**clean, "UV_CACHE_DIR": str(tools / "cache"), "UV_OFFLINE": "1", "UV_NO_CONFIG": "1"}
    quiet = ["--quiet", "--color", "never"]
    _run([str(uv), "venv", str(version), "--python", sys.executable, "--no-project", *quiet], env, version)
    install = ["pip", "install", "--python", str(version / "bin/python"), "--no-index", "--find-links", str(wheels)]
    _run([str(uv), *install, "--compile-bytecode", f"llmhost=={manifest['llmhost']}", *quiet], env, version)
    _run([str(version / "bin/llmhost"), "--version"], env, version)
    shutil.rmtree(tools, ignore_errors=True)
    (version / COMPLETE).touch()
    return version / "bin/llmhost"


def _unpack_uv(wheel: Path, tools: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        uv = Path(archive.extract(next(n for n in archive.namelist() if n.endswith(".data/scripts/uv")), tools))
    uv.chmod(0o755)
    return uv


def _run(argv: list[str], env: dict[str, str], version: Path) -> None:
    if os.spawnve(os.P_WAIT, argv[0], argv, env):
        shutil.rmtree(version, ignore_errors=True)
        raise carried.BundleProblem(f"this failed: {' '.join(argv)}", "see what it says above")


def _link(llmhost: Path, prefix: Path) -> Path:
    """Make ``prefix/bin/llmhost`` mean this one, at once for everybody."""
    link = prefix / "bin" / "llmhost"
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".llmhost.{os.getpid()}")
    temporary.symlink_to(llmhost)
    os.replace(temporary, link)
    return link


def _arguments(argv: list[str]) -> argparse.Namespace:
    root = os.geteuid() == 0
    default = "/opt/llmhost" if root else "~/.local/share/llmhost"
    parser = argparse.ArgumentParser(
        prog="bootstrap.py", description="Install llmhost from this bundle, without a network, and what else is in it."
    )
    parser.add_argument("--home", default=os.environ.get("LLMHOST_HOME") or "~/.llmhost", help="the home of llmhost")
    parser.add_argument("--prefix", default=default, help=f"where llmhost itself is installed (default: {default})")
    parser.add_argument("--verify", action="store_true", help="only say which pieces are there and right")
    parser.add_argument("--only-llmhost", action="store_true", help="install llmhost, nothing else of the bundle")
    return parser.parse_args(argv)


def _bring_contents(here: Path, manifest: dict[str, Any], home: Path) -> Path:
    """The directory with the files of the bundle."""
    total = sum(e["size"] for e in manifest["pieces"] or manifest["files"])
    print(f"==> verify {len(manifest['pieces'] or manifest['files'])} files, {total / carried.MIB:.0f} MiB")
    carried.require_whole(here, manifest)
    if not manifest["pieces"]:
        return here
    contents = carried.unpacked_dir(home, manifest)
    print(f"==> unpack them to {contents}")
    try:
        _claim(home)
    except OSError as e:
        raise carried.disk_problem(e, home) from e
    carried.sweep(home, contents)
    carried.unpack(here, manifest, contents, lambda _: None)
    return contents


def _verify(here: Path, manifest: dict[str, Any]) -> int:
    found = dict(carried.problems(here, manifest))
    for entry in manifest["pieces"] or manifest["files"]:
        name = entry.get("name") or entry["path"]
        if manifest["pieces"] or name in found:
            print(f"{name}: {found.get(name, 'right')}")
    print(f"{len(found)} to be copied again: {' '.join(found)}" if found else "everything is there and right")
    return 1 if found else 0


def main(argv: list[str]) -> int:
    """Exit status 0 when everything is installed."""
    options = _arguments(argv)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # in order with what programs print
    here = Path(__file__).resolve().parent
    home, prefix = (Path(os.path.abspath(os.path.expanduser(p))) for p in (options.home, options.prefix))
    manifest = carried.read_manifest(here)
    if options.verify:
        return _verify(here, manifest)
    _require_owner(home, prefix, here)
    carried.require_machine(manifest)
    carried.require_python(manifest)
    contents = _bring_contents(here, manifest, home)
    print(f"==> install llmhost {manifest['llmhost']} below {prefix}")
    try:
        link = _link(_install_llmhost(contents, manifest, prefix), prefix)
    except OSError as e:
        raise carried.disk_problem(e, prefix) from e
    if not options.only_llmhost:
        status = os.spawnv(os.P_WAIT, link, [str(link), "--home", str(home), "bundle", "install", str(contents)])
        if status:
            return status
    if contents != here:
        shutil.rmtree(contents, ignore_errors=True)
    print(f"llmhost is installed: {link} (put {link.parent} on PATH); its home is {home}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except carried.BundleProblem as problem:
        print(f"error: {problem.message}\nhint: {problem.hint}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: interrupted\nhint: the same command again goes on from here", file=sys.stderr)
        sys.exit(130)
