"""Names that no other writer on any machine will choose."""

import os
import re
import socket
import uuid


def unique_name() -> str:
    """Return ``<host>-<pid>-<8 hex digits>``; who wrote it can be read off a folder listing."""
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname()).strip("-") or "host"
    return f"{host[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
