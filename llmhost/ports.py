"""The gateway's ports: free, or already its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from llmhost.config import Config
from llmhost.errors import GatewayError
from llmhost.paths import Home
from llmhost.plan import Plan
from llmhost.probe.gateway import read_gateway
from llmhost.probe.host import port_owner
from llmhost.supervise.planfile import read_plan
from llmhost.supervise.status import read_status


def require_of_config(home: Home, config: Config) -> None:
    """Raise GatewayError for a port of llmhost.yaml that somebody else listens on, with his name."""
    own = {f"services.{name}.port": service.port for name, service in config.services.items() if service.port}
    _require(home, config.gateway.host, {"gateway.port": config.gateway.port, **own})


def require_of_plan(home: Home, plan: Plan) -> None:
    """The same for the ports of the plan in force."""
    _require(home, plan.gateway.host, _of(plan))
    require_of_node(home, plan)


def require_of_node(home: Home, plan: Plan) -> None:
    """The same for the port at which other nodes reach this one."""
    node = plan.here
    if node is not None and plan.peers:
        _require(home, node.listen, {f"nodes.{node.name}.gateway_port": node.port})


def _of(plan: Plan) -> dict[str, int]:
    """By their keys in llmhost.yaml."""
    own = {f"services.{s.name}.port": s.port for s in plan.services if s.port is not None}
    return {"gateway.port": plan.gateway.port, **own}


def _require(home: Home, host: str, ports: Mapping[str, int]) -> None:
    ours = _in_force(home)
    for key, port in ports.items():
        owner = None if port in ours else port_owner(host, port)
        if owner is not None:
            raise GatewayError(
                f"port {port} on {host} is in use by {owner}",
                f"stop it, or write another {key} in llmhost.yaml and run `llmhost up`",
            )


def _in_force(home: Home) -> Collection[int]:
    """What our running gateway listens on, on whatever address; a port that it could not bind is not among them."""
    status, plan = read_status(home), read_plan(home)
    if plan is None or status.gateway.pid is None:
        return ()
    state = read_gateway(home.gateway_admin_socket)
    own = (plan.here.port,) if plan.here else ()
    return state.listeners.values() if state.live else (*_of(plan).values(), *own)
