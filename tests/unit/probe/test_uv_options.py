"""What uv is configured with: files of the project, the user and the system, and variables over them."""

from __future__ import annotations

from pathlib import Path

from llmhost.probe.uv_options import read_uv_settings


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_and_variables(tmp_path: Path) -> None:
    user = write(
        tmp_path / "user/.config/uv/uv.toml",
        'index-strategy = "first-index"\nnative-tls = true\nextra-index-url = ["https://u:pw@two/simple"]\n'
        '[[index]]\nname = "corp"\nurl = "https://reader:s3cret@mirror/simple"\ndefault = true\n'
        '[pip]\nno-index = false\ntorch-backend = "cu130"\nnative-tls = false\n',
    )
    system = write(
        tmp_path / "etc/uv/uv.toml", 'index-strategy = "unsafe-best-match"\nextra-index-url = ["https://3/"]'
    )
    environ = {
        "HOME": str(tmp_path / "user"), "UV_INDEX": "https://h/t/tok3n/simple", "UV_INDEX_CORP_PASSWORD": "s3cret",
        "UV_RUN_RECURSION_DEPTH": "1", "UV_OFFLINE": "",
    }  # fmt: skip
    found = read_uv_settings(environ, tmp_path / "home/engines", tmp_path)
    assert found == {
        "UV_INDEX": "https://h/t/****/simple",
        "UV_INDEX_CORP_PASSWORD": "****",
        "config-file": f"{user} {system}",
        "index-strategy": "first-index",
        "native-tls": "false",
        "extra-index-url": "https://****@two/simple https://3/",
        "index": "corp=https://****@mirror/simple (default)",
        "no-index": "false",
        "torch-backend": "cu130",
    }


def test_a_project_above_the_home_counts(tmp_path: Path) -> None:
    write(tmp_path / "work/pyproject.toml", '[tool.uv]\nindex-url = "https://near/"\n')
    write(tmp_path / "work/home/pyproject.toml", "[project]\nname = 'x'\n")  # says nothing of uv
    write(tmp_path / ".config/uv/uv.toml", 'index-url = "https://far/"\n')
    cwd = tmp_path / "work/home/engines"
    assert read_uv_settings({"HOME": str(tmp_path)}, cwd, tmp_path)["index-url"] == "https://near/"
    named = write(tmp_path / "other.toml", 'index-url = "https://named/"\n')
    found = read_uv_settings({"HOME": str(tmp_path), "UV_CONFIG_FILE": str(named)}, cwd, tmp_path)
    assert (found["index-url"], found["config-file"]) == ("https://named/", str(named))
    assert read_uv_settings({"HOME": str(tmp_path), "UV_NO_CONFIG": "1"}, cwd, tmp_path) == {"UV_NO_CONFIG": "1"}


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / ".config/uv/uv.toml", "index-url = ")
    (tmp_path / "etc/uv/uv.toml").mkdir(parents=True)
    assert read_uv_settings({"HOME": str(tmp_path)}, tmp_path / "h", tmp_path) == {}
