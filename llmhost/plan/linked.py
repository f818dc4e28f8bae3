"""Services that must be on one node, because they reach each other on the loopback. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from llmhost.config import Service
from llmhost.config_foreign import PORT, names_in


def linked(services: Mapping[str, Service]) -> tuple[tuple[str, ...], ...]:
    """The services in groups, in the order of the first of each: who has another's address in its command, and who
    needs a helper, which no gateway reaches, is in the same group."""
    group = {name: [name] for name in services}
    for name, service in services.items():
        for other in _reached(service, services):
            if group[other] is not group[name]:
                merged = sorted({*group[name], *group[other]}, key=list(services).index)
                group |= dict.fromkeys(merged, merged)
    return tuple(dict.fromkeys(tuple(members) for members in group.values()))


def _reached(service: Service, services: Mapping[str, Service]) -> set[str]:
    found = {name for name in service.needs if name in services and not services[name].routed}
    for placeholder in names_in(service, service.env) if service.is_foreign else ():
        place = PORT.fullmatch(placeholder)
        if place is not None and place["service"]:
            found.add(place["service"])
    return found
