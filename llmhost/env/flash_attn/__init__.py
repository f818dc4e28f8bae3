"""flash-attn, compiled for the GPUs of a machine and the torch of an engine."""

from llmhost.env.flash_attn.ensure import (
    FlashAttnReport,
    ensure_flash_attn,
    explain_flash_attn,
    require_possible,
)

__all__ = ["FlashAttnReport", "ensure_flash_attn", "explain_flash_attn", "require_possible"]
