"""The exporter: ``<python> -I -S exporter.py <metrics.json>``, run by supervisord, tied to its life.

This file only finds its modules: ``-I -S`` keeps site-packages, and with them memory and surprises, out.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
    from llmhost.metrics.server import Server

    Server(sys.argv[1]).serve()
