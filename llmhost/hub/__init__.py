"""Models from Hugging Face and ModelScope: found, fetched, checked, kept.

The hubs' own clients do the talking. They are imported when they are needed, because that takes a second, and told to
draw no progress bars of their own before that.
"""

from __future__ import annotations

import os

os.environ.setdefault("TQDM_DISABLE", "1")
