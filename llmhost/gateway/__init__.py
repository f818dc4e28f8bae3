"""Plan -> the configuration of Envoy, which is the gateway. Pure; nothing here touches the disk or a process."""

from __future__ import annotations

from collections.abc import Iterable

from llmhost.files import RenderedFile
from llmhost.gateway.bootstrap import FOLDER, gateway_argv, render_bootstrap, render_static
from llmhost.gateway.clusters import clusters, members, members_file
from llmhost.gateway.endpoints import ENDPOINTS, Endpoint
from llmhost.gateway.envoy import Data, resource_file, version_of
from llmhost.gateway.listeners import listeners
from llmhost.gateway.routes import route_configurations, routes_file
from llmhost.plan.types import Plan

__all__ = ["ENDPOINTS", "Endpoint", "gateway_argv", "gateway_versions", "render_gateway", "render_static"]


def render_gateway(plan: Plan) -> tuple[RenderedFile, ...]:
    """Envoy's bootstrap and the files that it watches; equal plans give equal bytes.

    Write them one by one and each by rename, eds before cds before rds: Envoy takes a change as soon as a file is
    renamed into place. Raises GatewayError when ``gateway.host`` is not an IP address.
    """
    return (
        render_bootstrap(plan),
        *(_resources(members_file(name), (resource,)) for name, resource in members(plan).items()),
        _resources("cds", clusters(plan)),
        *(_resources(routes_file(r["name"]), (r,)) for r in route_configurations(plan)),
        _resources("lds", listeners(plan)),
    )


def _resources(name: str, resources: tuple[Data, ...]) -> RenderedFile:
    return RenderedFile(f"{FOLDER}/{name}.json", resource_file(resources))


def gateway_versions(files: Iterable[RenderedFile]) -> dict[str, str]:
    """The version of each watched file among ``files``, by its name without suffix, as the gateway reports them."""
    watched = (f for f in files if f.path.startswith(f"{FOLDER}/") and f.path.endswith(".json"))
    return {f.path.removeprefix(f"{FOLDER}/").removesuffix(".json"): version_of(f.text) for f in watched}
