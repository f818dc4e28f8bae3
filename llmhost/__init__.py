"""llmhost: vLLM services on bare metal from one YAML file."""

__version__ = "0.1.0"
