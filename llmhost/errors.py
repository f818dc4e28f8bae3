"""Every error that a user can meet: a message, a hint and an exit status.

Raised anywhere, caught once (``llmhost.__main__.main``), printed as one ``error:`` line and one ``hint:`` line.
"""

from __future__ import annotations

from typing import ClassVar


class LlmhostError(Exception):
    """Base of all errors that are a message to the user rather than a bug.

    ``message`` names the key, file, flag or package that is wrong; ``hint`` says what to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(LlmhostError):
    """llmhost.yaml is missing, cannot be parsed, or holds a wrong key or value."""


class HomeError(LlmhostError):
    """The home directory cannot be used (not ours, too long a path, not writable)."""


class BusyError(LlmhostError):
    """Another llmhost command is changing the same home."""

    exit_code = 4


class CommandError(LlmhostError):
    """A program that llmhost ran ended with an error or could not be started."""


class CommandTimeout(CommandError):
    """A program that llmhost ran did not end in time."""


class SshError(LlmhostError):
    """A host cannot be used over ssh; ``reason`` says why in a word or two."""

    def __init__(self, message: str, hint: str = "", reason: str = "") -> None:
        super().__init__(message, hint)
        self.reason = reason


class NodeError(LlmhostError):
    """A node cannot be added, brought up to date or removed."""


class EngineError(LlmhostError):
    """The engine environment cannot be built, is broken or is missing."""


class BadWheelError(EngineError):
    """The flash-attn that was checked is to blame, not the GPU or the engine: it does not load or computes wrongly."""


class MachineError(LlmhostError):
    """This machine lacks what a start needs: memory to share, open files, a driver."""


class BundleError(LlmhostError):
    """A bundle cannot be made, is not whole, or is for another machine."""


class FactsError(LlmhostError):
    """A file is not the facts of a machine, or of a version that is not understood."""


class HubError(LlmhostError):
    """A model hub does not have what is asked for, does not give it to this user, or cannot be reached."""


class NotOnHubError(HubError):
    """The hub has no such repository or revision, or does not show it to this user."""


class ModelError(LlmhostError):
    """A model directory is missing, incomplete or not what the service needs."""


class UnknownKindError(ModelError):
    """The kind of a model cannot be told; ``why`` says so in words."""

    def __init__(self, message: str, hint: str = "", why: str = "") -> None:
        super().__init__(message, hint)
        self.why = why


class PlanError(LlmhostError):
    """The configuration does not fit this machine or the installed engine."""


class RenderError(LlmhostError):
    """A value cannot be written into a configuration file without changing it."""


class GatewayError(LlmhostError):
    """The gateway cannot start, or Envoy refuses its configuration."""


class KeyNameError(LlmhostError):
    """An API key that does not exist, exists already, or cannot be called so."""


class KeyFileError(LlmhostError):
    """The list of API keys cannot be read."""


class SupervisorError(LlmhostError):
    """supervisord cannot be started, reached or told what to do."""


class NotReadyError(LlmhostError):
    """Services are not (all) ready."""

    exit_code = 3


class CheckError(LlmhostError):
    """A running service answered wrongly."""


class Interrupted(LlmhostError):
    """The user pressed Ctrl-C; what was done so far stays understandable for the next command."""

    exit_code = 130
