"""Refuses and records every connection of a Python process, and of those it starts, to another machine."""

import ipaddress
import os
import socket
from pathlib import Path

_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex


def _guard(self, address):
    if self.family not in (socket.AF_INET, socket.AF_INET6):
        return
    host = str(address[0])
    try:
        allowed = host in ("localhost", "") or ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        allowed = False
    # A datagram socket that is "connected" only asks which own address it would use; nothing is sent.
    if not allowed and self.type & socket.SOCK_STREAM == socket.SOCK_STREAM:
        with Path(os.environ["GUARD_RECORD"]).open("a") as record:
            record.write(f"{address}\n")
        raise OSError(f"refused by the tests: {address}")


def connect(self, address):
    _guard(self, address)
    return _connect(self, address)


def connect_ex(self, address):
    _guard(self, address)
    return _connect_ex(self, address)


socket.socket.connect, socket.socket.connect_ex = connect, connect_ex
