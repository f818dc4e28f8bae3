"""The least that a guard takes for an engine: every request is answered with 200. It starts in a few milliseconds."""

import os
import signal
import socket
import sys

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[sys.argv.index("--uds") + 1])
    server.listen()
    while True:
        connection = server.accept()[0]
        with connection:
            connection.recv(65536)
            connection.sendall(HEAD)
