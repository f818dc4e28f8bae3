"""The data of a plan. Plain frozen dataclasses, so that every flag, socket and share is an equality test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from llmhost.facts import Device, ServiceKind, Tools
from llmhost.gateway_address import local_url


@dataclass(frozen=True)
class Limits:
    """What the gateway lets through of one service, or for one API key; None: as much as comes."""

    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    max_body_bytes: int | None = None

    def or_else(self, default: Limits) -> Limits:
        """These limits, and the others of ``default``."""
        return replace(default, **{name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class KeyPlan:
    """An API key as the gateway must know it."""

    name: str
    user: str
    """What stands before the secret in the key: name and number, so that a rotated key can overlap its successor."""
    digest: str = field(repr=False)
    """SHA-1 of the secret, in base64; it never leaves the memory but for Envoy's file, see `llmhost.plan.stored`."""
    services: tuple[str, ...] | None = None
    """The services that it may use; None: all."""
    expires: int | None = None
    """Unix time from which on it is refused."""
    limits: Limits = Limits()


@dataclass(frozen=True)
class TlsPlan:
    """Paths of PEM files; with ``client_ca`` only clients with a certificate of it get in."""

    certificate: str
    key: str
    client_ca: str | None = None


@dataclass(frozen=True)
class GroupPlan:
    """The parts of one replica, each on a node of its own, and which of them a program is."""

    name: str
    """Of the program of rank 0."""
    rank: int
    nodes: tuple[str, ...]
    """Of all parts, by rank."""
    addresses: tuple[str, ...]
    port: int
    """Where the guard of rank 0 listens for the others."""
    master_port: int
    """Where vLLM of rank 0 does; 0 when Ray brings them together."""
    digest: str
    """Of what all parts must have in common; those of another plan do not start together."""
    secret: str = field(default="", repr=False)
    """What the guards know each other by; it never leaves the memory but for their files, see `llmhost.plan.stored`."""
    vllm: str = ""
    """Version of the engine of this part, for a message when those of the parts differ."""
    cluster_port: int = 0
    """Where Ray of rank 0 listens for the others; 0 without Ray."""


@dataclass(frozen=True)
class ProgramPlan:
    """One engine process: a replica of a service, as supervisord and its guard will run it."""

    name: str
    """``<service>-<replica number>``, also the name of the supervisor program and group."""
    argv: tuple[str, ...]
    """The command of the engine, complete, so that it can be run by hand."""
    env: Mapping[str, str]
    """Variables added to the environment of the engine."""
    socket: str
    """Where it listens: the path of a unix socket, or ``127.0.0.1:port``; '' for a helper that does not."""
    gpus: tuple[int, ...]
    cores: tuple[int, ...]
    """CPUs that the engine is bound to; empty: not bound."""
    memory_bytes: int
    """Host memory (CPU engines) that the plan reckons with for this process."""
    kv_cache_bytes: int
    threads: int = 0
    """OpenMP threads of a CPU engine that is not bound to cores; 0: one on each of its cores."""
    gpu_memory_bytes: int = 0
    """Memory of each of its GPUs that the plan reckons with, KV cache included."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """TCP ports of a foreign engine, by placeholder: ``port``, ``port:web``."""
    group: GroupPlan | None = None
    """Of a replica that spans nodes."""


@dataclass(frozen=True)
class EndpointPlan:
    """A server on another host that takes its part of a service's requests."""

    url: str
    """``scheme://host:port``."""
    address: str
    """IP address of the host when the plan was made."""
    key_file: str | None = None
    key: str | None = field(default=None, repr=False)
    """The API key that it wants; it never leaves the memory but for Envoy's file, see `llmhost.plan.stored`."""
    ca_file: str | None = None

    @property
    def tls(self) -> bool:
        return self.url.startswith("https:")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def host(self) -> str:
        """Name or address, as written."""
        return self.url.partition("://")[2].rpartition(":")[0].strip("[]")

    @property
    def member(self) -> str:
        """How the gateway calls it."""
        return f"{self.address}:{self.port}"


@dataclass(frozen=True)
class NodePlan:
    """A node as the gateways of the others must know it."""

    name: str
    address: str
    """IP address."""
    port: int
    """Where its gateway listens for those of other nodes."""
    listen: str = ""
    """Of the plan's own node: the address that it listens on."""
    mark: str = ""
    """Of the plan's own node: digest of its certificates, so that Envoy reads new ones."""

    @property
    def member(self) -> str:
        """How the gateway calls it."""
        return f"{self.address}:{self.port}"


@dataclass(frozen=True)
class ElsewherePlan:
    """Replicas of a service that another node runs."""

    node: str
    replicas: tuple[str, ...]
    """Names of its programs there, with numbers that are the same on every node: ``chat-1``."""


@dataclass(frozen=True)
class StickyPlan:
    """What requests that go to the same replica have in common: a header, or so many bytes of their beginning."""

    header: str | None = None
    prefix: int | None = None


@dataclass(frozen=True)
class Choice:
    """What stands for a flag that depends on the model, and why; ``value`` None: the flag is left out."""

    flag: str
    value: str | None
    reason: str


@dataclass(frozen=True)
class RequestPlan:
    """A request that shows that an engine works: GET, or POST of ``body`` (JSON as text)."""

    path: str
    body: str | None = None
    timeout: float | None = None
    """Seconds for the answer; None: what the guard finds right."""


@dataclass(frozen=True)
class ForeignPlan:
    """What is different where the engine is not vLLM."""

    bin: str = ""
    """Comes first on its PATH; '' without an environment of its own."""
    ready: RequestPlan | None = None
    """None: a real request of its kind."""
    health: RequestPlan | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    """Path at the gateway -> path at the engine."""
    model_name: str | None = None
    """What the engine gets as ``model``."""

    @property
    def looked_at(self) -> str:
        """Path of a GET that tells the gateway whether it is healthy, '' where nobody wrote one."""
        requests = (r for r in (self.health, self.ready) if r is not None and r.body is None)
        return next((r.path for r in requests), "")


@dataclass(frozen=True)
class ServicePlan:
    """One model served under one or more names by one or more replicas."""

    name: str
    kind: ServiceKind
    kind_reason: str
    model: str
    """As written in llmhost.yaml; of a foreign engine what tells best what it is."""
    model_path: str
    served_as: tuple[str, ...]
    port: int | None
    """Publishes this service alone on the gateway's host, too."""
    start_timeout: float
    """Seconds until a starting engine counts as failed."""
    stop_timeout: float
    """Seconds that running requests get to finish when the service is stopped."""
    replicas: tuple[ProgramPlan, ...]
    endpoints: tuple[EndpointPlan, ...] = ()
    sticky: StickyPlan | None = None
    limits: Limits = Limits()
    default: bool = False
    """Answers requests of its kind that name no model, also beside other services of the kind."""
    hang_timeout: float = 60.0
    """Seconds until an engine that does not answer is restarted; 0: it is not watched."""
    max_restarts: int = 10
    """Failures in a row after which a replica is given up."""
    choices: tuple[Choice, ...] = ()
    """Flags that follow from the model."""
    needs: tuple[str, ...] = ()
    """Services of which one replica must be ready before one of this starts."""
    foreign: ForeignPlan | None = None
    """None: vLLM."""
    elsewhere: tuple[ElsewherePlan, ...] = ()
    """Other nodes that run replicas of it; ``replicas`` are this node's own."""
    part_of: str = ""
    """The service whose model it helps to run: as a part of another rank than 0, or as its Ray."""

    @property
    def routed(self) -> bool:
        """The gateway knows it; False for helpers."""
        return self.kind != "none"


@dataclass(frozen=True)
class GatewayPlan:
    """The Envoy in front of all services; sizes in bytes."""

    host: str
    port: int
    max_body_bytes: int
    locked: bool = False
    """Every request needs an API key; so it stays when the last one is revoked."""
    keys: tuple[KeyPlan, ...] = ()
    """The keys that open it, expired ones included: the gateway looks at the clock itself."""
    tls: TlsPlan | None = None
    key_limits: Limits = Limits()
    """For keys without limits of their own."""
    insecure: bool = False
    """Whoever can reach the address is served without a key, unless there are keys."""

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the gateway."""
        return local_url(self.host, self.port, "https" if self.tls else "http")


@dataclass(frozen=True)
class EnginePlan:
    """The engine that the services run in."""

    name: str
    python: str
    device: Device
    vllm_version: str


@dataclass(frozen=True)
class Plan:
    """What runs where with which flags. Computed by `llmhost.plan.build`, never changed afterwards."""

    home: str
    tools: Tools
    engine: EnginePlan
    gateway: GatewayPlan
    services: tuple[ServicePlan, ...]
    node: str = ""
    """The node that this is the plan of; '' in a home without nodes."""
    nodes: tuple[NodePlan, ...] = ()
    """All nodes, this one included, in the order of llmhost.yaml."""
    placement: str = ""
    """Digest of which node runs what: the same on all nodes, or they have different files."""
    on_event: str | None = field(default=None, repr=False)
    """Command or URL that is told of trouble; it may hold a secret."""

    @property
    def programs(self) -> tuple[ProgramPlan, ...]:
        return tuple(replica for service in self.services for replica in service.replicas)

    @property
    def routed(self) -> tuple[ServicePlan, ...]:
        """The services that the gateway knows."""
        return tuple(service for service in self.services if service.routed)

    @property
    def here(self) -> NodePlan | None:
        """This node; None in a home without nodes."""
        return next((n for n in self.nodes if n.name == self.node), None)

    @property
    def peers(self) -> tuple[NodePlan, ...]:
        """The other nodes."""
        return tuple(n for n in self.nodes if n.name != self.node)

    def service(self, name: str) -> ServicePlan | None:
        return next((s for s in self.services if s.name == name), None)
