"""Which proxy the source of flash-attn is fetched through."""

from __future__ import annotations

import pytest

from llmhost.env.flash_attn.source import proxies_of

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("env", "routes"),
    [
        ({}, {}),
        ({"HTTPS_PROXY": PROXY}, {"https://": PROXY}),
        ({"ALL_PROXY": PROXY, "http_proxy": "small:1"}, {"http://": "http://small:1", "https://": PROXY}),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, {}),
        (
            {"HTTPS_PROXY": PROXY, "no_proxy": "mirror, .corp,127.0.0.1,::1,localhost,host:8080"},
            {
                "https://": PROXY, "all://*mirror": "", "all://*.corp": "", "all://127.0.0.1": "", "all://[::1]": "",
                "all://localhost": "", "all://*host:8080": "",
            },
        ),
    ],
)  # fmt: skip
def test_routes(env: dict[str, str], routes: dict[str, str]) -> None:
    assert proxies_of(env) == routes


@pytest.mark.parametrize(
    ("host", "routes"),
    [
        ("mirror", {"https://": PROXY}),
        ("10.1.2.3", {"https://": PROXY, "all://10.1.2.3": ""}),
        ("::1", {"https://": PROXY, "all://[::1]": ""}),
        ("11.1.2.3", {"https://": PROXY}),
    ],
)
def test_networks_without_a_proxy(host: str, routes: dict[str, str]) -> None:
    assert proxies_of({"HTTPS_PROXY": PROXY, "NO_PROXY": "::1/128,10.0.0.0/8,no/sense"}, host) == routes
