"""pip's options -> uv's environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost.env.pip_config import mask, parse_pip_config, uv_settings

STRATEGY = {"UV_INDEX_STRATEGY": "unsafe-best-match"}

LISTING = r"""
global.find-links='/global'
global.extra-index-url='https://a.example/simple\nhttps://b.example/simple'
install.find-links='/install'
download.index-url='https://not-for-install.example'
global.timeout='60'
:env:.timeout='5'
:env:.no_index='1'
list.format='columns'
broken line
global.unquoted=yes
"""


def test_parse() -> None:
    assert parse_pip_config(LISTING) == {
        "find-links": "/install",
        "extra-index-url": "https://a.example/simple\nhttps://b.example/simple",
        "timeout": "5",
        "no-index": "1",
        "unquoted": "yes",
    }


def test_nothing_configured() -> None:
    settings = uv_settings({}, {})
    assert (settings.env, settings.arguments, settings.notes) == (STRATEGY, (), ())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"index-url": " https://m.example/simple\n"}, {"UV_DEFAULT_INDEX": "https://m.example/simple"}),
        ({"extra-index-url": "https://a/s\n  https://b/s"}, {"UV_INDEX": "https://a/s https://b/s"}),
        ({"find-links": "https://f/a,b https://f/c"}, {"UV_FIND_LINKS": "https://f/a%2Cb,https://f/c"}),
        ({"trusted-host": "h1 h2:8080"}, {"UV_INSECURE_HOST": "h1 h2:8080"}),
        ({"proxy": "u:p@proxy:3128"}, {"HTTP_PROXY": "http://u:p@proxy:3128", "HTTPS_PROXY": "http://u:p@proxy:3128"}),
        ({"proxy": "https://proxy"}, {"HTTP_PROXY": "https://proxy", "HTTPS_PROXY": "https://proxy"}),
        ({"timeout": "15"}, {"UV_HTTP_TIMEOUT": "15"}),
        ({"default-timeout": "180"}, {"UV_HTTP_TIMEOUT": "180"}),
        ({"timeout": "2.5"}, {"UV_HTTP_TIMEOUT": "2"}),
        ({"retries": "0"}, {"UV_HTTP_RETRIES": "0"}),
        ({"no-index": "false"}, {}),
    ],
)
def test_translation(options: dict[str, str], expected: dict[str, str]) -> None:
    settings = uv_settings(options, {})
    assert settings.env == {**STRATEGY, **expected}
    assert settings.arguments == ()


def test_no_index() -> None:
    """Then no index is named, though one is configured."""
    settings = uv_settings({"no-index": "Yes", "index-url": "https://x/simple", "find-links": "https://f"}, {})
    assert settings.arguments == ("--no-index",)
    assert settings.env == {**STRATEGY, "UV_FIND_LINKS": "https://f"}


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ({"index-url": "https://pip"}, {"UV_INDEX_URL": "https://uv"}),
        ({"index-url": "https://pip"}, {"UV_DEFAULT_INDEX": "https://uv"}),
        ({"extra-index-url": "https://pip"}, {"UV_EXTRA_INDEX_URL": "https://uv"}),
        ({"find-links": "https://pip"}, {"UV_FIND_LINKS": "/uv"}),
        ({"proxy": "pip:1"}, {"https_proxy": "http://env:2", "http_proxy": "http://env:2"}),
        ({"proxy": "pip:1"}, {"ALL_PROXY": "http://env:2"}),
        ({"timeout": "1"}, {"UV_HTTP_TIMEOUT": "2"}),
        ({}, {}),
    ],
)
def test_what_is_set_for_uv_wins(options: dict[str, str], environ: dict[str, str]) -> None:
    assert uv_settings(options, environ).env == STRATEGY
    assert uv_settings(options, {**environ, "UV_INDEX_STRATEGY": "first-index"}).env == {}


def test_an_empty_variable_counts_as_not_set() -> None:
    assert uv_settings({"timeout": "1"}, {"UV_HTTP_TIMEOUT": ""}).env["UV_HTTP_TIMEOUT"] == "1"


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a,b").mkdir()
    (tmp_path / "c").mkdir()
    links = f"{tmp_path}/a,b\n~/c file://{tmp_path}/c /not/there https://user:pw@host/links"
    settings = uv_settings({"find-links": links}, {})
    assert settings.env["UV_FIND_LINKS"].split(",") == [
        f"file://{tmp_path}/a%2Cb", f"{tmp_path}/c", f"{tmp_path}/c", "https://user:pw@host/links",
    ]  # fmt: skip
    assert settings.notes == ("pip's find-links /not/there does not exist and is left out",)


def test_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    options = {"cert": str(tmp_path / "ca.pem"), "client-cert": "/not/there.pem"}
    settings = uv_settings(options, {})
    assert settings.env == {**STRATEGY, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    assert settings.notes == ("pip's client-cert /not/there.pem does not exist and is left out",)
    assert uv_settings({"cert": str(tmp_path)}, {}).env == {**STRATEGY, "SSL_CERT_DIR": str(tmp_path)}


def test_passwords_are_not_shown() -> None:
    settings = uv_settings({"index-url": "https://user:pw@host/simple", "find-links": "file://u:pw@h/x"}, {})
    assert "pw" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("get https://u:p@h/s and http://token@h2/", "get https://****@h/s and http://****@h2/"),
        ("https://h/s?a=b@c", "https://h/s?a=b@c"),
        ("https://u:p@ss@h/s", "https://****@h/s"),
        ("no url user:pw@host", "no url user:pw@host"),
        ("'https://h/t/ab-12/main' https://u:p@h:1/t/ab", "'https://h/t/****/main' https://****@h:1/t/****"),
        ("/t/x https://h/t https://h/at/x/", "/t/x https://h/t https://h/at/x/"),
    ],
)
def test_mask(text: str, masked: str) -> None:
    assert mask(text) == masked
