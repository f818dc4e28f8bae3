"""The clients of the hubs read their patience when they are imported: short here."""

from __future__ import annotations

import os

os.environ.setdefault("MODELSCOPE_DOWNLOAD_RETRY_MAX_DELAY_SECONDS", "1")
os.environ.setdefault("MODELSCOPE_API_MAX_RETRIES", "1")
