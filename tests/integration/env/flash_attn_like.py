"""A source archive that builds as flash-attn does (setuptools, ninja, one object for each file) without CUDA or torch,
and an environment whose torch says what a CUDA torch would: the edges that cannot be real without a GPU."""

from __future__ import annotations

import io
import os
import shutil
import sys
import sysconfig
import tarfile
from pathlib import Path

from llmhost.run import capture
from tests.integration.env.wheels import make_wheel

VERSION = "2.99.0"
OBJECTS = 12
SETUP = """
import os, shutil, subprocess, torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

class NinjaBuild(build_ext):
    def build_extension(self, ext):
        assert os.environ["FLASH_ATTENTION_FORCE_BUILD"] == "TRUE"
        assert os.environ["CUDA_HOME"] and os.environ["FLASH_ATTN_CUDA_ARCHS"] and os.environ["NVCC_THREADS"]
        temp = os.path.abspath(self.build_temp)
        os.makedirs(temp, exist_ok=True)
        tree, include = os.getcwd(), os.path.dirname(torch.__file__)
        lines = ["rule compile", f"  command = sh {tree}/compile.sh -I{include} $in $out"]
        outputs = [f"{temp}/{os.path.basename(s)[:-3]}.o" for s in ext.sources]
        lines += [f"build {o}: compile {tree}/{s}" for o, s in zip(outputs, ext.sources)]
        text = "\\n".join(lines) + "\\n"
        with open(f"{temp}/build.ninja", "w") as file:
            file.write(text)
        done = subprocess.run(["ninja", "-v", "-j", os.environ["MAX_JOBS"]], cwd=temp)
        if done.returncode:
            raise RuntimeError("Error compiling objects for extension")
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(outputs[0], target)

setup(
    name="flash_attn", version="%s", packages=["flash_attn"],
    ext_modules=[Extension("flash_attn_2_cuda", [f"csrc/kernel_{i:02}.cu" for i in range(%d)])],
    cmdclass={"build_ext": NinjaBuild},
)
"""
COMPILE = """
echo "$2" >> "$COMPILED"
if [ -n "$BREAK" ] && [ "${2%07.cu}" != "$2" ]; then
  if [ "$BREAK" = oom ]; then kill -9 $$; fi
  echo "$BREAK"
  exit 1
fi
sleep 0.05
cp "$2" "$3"
"""
TORCH = """
    __version__ = "2.11.0+cu130"
    class version:
        cuda = {cuda!r}
    def compiled_with_cxx11_abi():
        return True
"""


def make_source(directory: Path) -> Path:
    """``flash_attn-2.99.0.tar.gz`` in a directory that serves as find-links."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        "setup.py": SETUP % (VERSION, OBJECTS),
        "compile.sh": COMPILE,
        "flash_attn/__init__.py": f'__version__ = "{VERSION}"\n',
        "PKG-INFO": f"Metadata-Version: 2.1\nName: flash_attn\nVersion: {VERSION}\n",
        **{f"csrc/kernel_{i:02}.cu": f"// kernel {i}\n" for i in range(OBJECTS)},
    }
    archive = directory / f"flash_attn-{VERSION}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"flash_attn-{VERSION}/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return archive


def make_engine(prefix: Path, uv: str, cuda: str | None = "13.0") -> Path:
    """The interpreter of an environment with that torch, in which flash-attn can be built."""
    capture([uv, "venv", prefix, "--python", sys.executable, "--no-project", "--quiet"])
    torch = make_wheel(prefix / "wheels", "torch", "2.11.0", {"torch/__init__.py": TORCH.format(cuda=cuda)})
    shutil.unpack_archive(torch, next(prefix.glob("lib/python3*/site-packages")), "zip")
    lend_build_tools(prefix)
    return prefix / "bin/python"


def lend_build_tools(prefix: Path) -> None:
    """setuptools and ninja of the tests, and what only has to be there by name."""
    site = next(prefix.glob("lib/python3*/site-packages"))
    for name in ("einops", "wheel"):
        wheel = make_wheel(prefix / "wheels", name, "1.0", {f"{name}_stand_in.py": ""})
        shutil.unpack_archive(wheel, site, "zip")
    (site / "of_the_tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    os.symlink(Path(sysconfig.get_path("scripts")) / "ninja", prefix / "bin/ninja")
