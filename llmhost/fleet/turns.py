"""Which nodes change at the same time, and which ones wait for others. Pure."""

from __future__ import annotations

from collections.abc import Mapping

Turns = tuple[tuple[str, ...], ...]
"""Names of nodes; those of a turn at the same time, each turn after the one before."""
Services = Mapping[str, frozenset[str]]
"""Node -> services: in the order of llmhost.yaml, with all of its nodes."""


def of_restart(running: Services) -> Turns:
    """Nodes that run something one after another; then those where nothing runs, or that did not say what."""
    return _filled((*((n,) for n in running if running[n]), tuple(n for n in running if not running[n])))


def of_up(running: Services, placed: Services) -> Turns:
    """From what runs to what is placed where.

    Where no service is on several nodes, before or after, they do not concern each other. Else those where nothing
    runs go first; then one after another, so that the others serve meanwhile. Who gets a service from another node goes
    before who gives it away; nodes that give and get go together, because they wait for each other, and with them those
    that only pass requests on, which wait for both.
    """
    every = [running[n] | placed.get(n, frozenset()) for n in running]
    if len(frozenset().union(*every)) == sum(map(len, every)):
        return (tuple(running),)
    busy = [n for n in running if running[n]]
    gets = {n for n in busy if (placed.get(n, frozenset()) - running[n]) & frozenset().union(*running.values())}
    gives = {n for n in busy if (running[n] - placed.get(n, frozenset())) & frozenset().union(*placed.values())}
    passing = {n for n in running if gives and not running[n] and not placed.get(n)}
    return _filled(
        (
            tuple(n for n in running if not running[n] and n not in passing),
            *((n,) for n in busy if n in gets - gives),
            tuple(n for n in running if n in gets & gives | passing),
            *((n,) for n in busy if n not in gets | gives),
            *((n,) for n in busy if n in gives - gets),
        )
    )


def _filled(turns: Turns) -> Turns:
    return tuple(turn for turn in turns if turn)
