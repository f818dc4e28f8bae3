"""Plan -> the configuration of Envoy, which is the gateway. Pure; nothing here touches the disk or a process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from llmhost.files import RenderedFile
from llmhost.gateway.bootstrap import FOLDER, gateway_argv, render_bootstrap, render_static
from llmhost.gateway.clusters import clusters, members, members_file
from llmhost.gateway.endpoints import ENDPOINTS, Endpoint
from llmhost.gateway.envoy import Data, gateway_dir, resource_file, version_of
from llmhost.gateway.listeners import listeners
from llmhost.gateway.routes import route_configurations, routes_file
from llmhost.gateway.tls import WATCHED, secrets, watched_files
from llmhost.plan.types import Plan

__all__ = [
    "ENDPOINTS",
    "WATCHED_FILE",
    "Endpoint",
    "gateway_argv",
    "gateway_versions",
    "render_gateway",
    "render_routes",
    "render_static",
]

WATCHED_FILE = f"{FOLDER}/{WATCHED}/watched.json"
"""The paths of certificates; it is renamed into place anew whenever one of them has changed."""


def render_gateway(plan: Plan) -> tuple[RenderedFile, ...]:
    """Envoy's bootstrap and the files that it watches; equal plans give equal bytes.

    Write them one by one and each by rename, eds before cds before rds: Envoy takes a change as soon as a file is
    renamed into place. Raises GatewayError when ``gateway.host`` is not an IP address.
    """
    return (
        render_bootstrap(plan),
        *_certificates(plan),
        *(_resources(members_file(name), (resource,)) for name, resource in members(plan).items()),
        _resources("cds", clusters(plan)),
        *render_routes(plan),
        _resources("lds", listeners(plan)),
    )


def render_routes(plan: Plan) -> tuple[RenderedFile, ...]:
    """The files that hold the routes and, with them, the API keys."""
    return tuple(_resources(routes_file(r["name"]), (r,)) for r in route_configurations(plan))


def _certificates(plan: Plan) -> tuple[RenderedFile, ...]:
    tls = plan.gateway.tls
    if tls is None:
        return ()
    watched = RenderedFile(WATCHED_FILE, json.dumps(watched_files(tls), ensure_ascii=False, indent=1) + "\n")
    return (watched, *(_resources(name, (secret,)) for name, secret in secrets(tls, gateway_dir(plan)).items()))


def _resources(name: str, resources: tuple[Data, ...]) -> RenderedFile:
    return RenderedFile(f"{FOLDER}/{name}.json", resource_file(resources))


def gateway_versions(files: Iterable[RenderedFile]) -> dict[str, str]:
    """The version of each watched file among ``files``, by its name without suffix, as the gateway reports them."""
    # Of secrets Envoy tells no version.
    watched = (f for f in files if re.fullmatch(f"{FOLDER}/(cds|lds|(rds|eds)[^/]*)[.]json", f.path))
    return {f.path.removeprefix(f"{FOLDER}/").removesuffix(".json"): version_of(f.text) for f in watched}
