"""No test reaches a network: each Python process of theirs imports this when it starts."""

import socket
import sys
from ipaddress import ip_address


def refuse(event: str, args: tuple[object, ...]) -> None:
    """Let connections to this machine pass; names that stand for none are not looked up."""
    if event == "socket.connect":
        address = args[1]
        if isinstance(address, tuple) and not ip_address(address[0]).is_loopback:
            raise RuntimeError(f"a test connects to {address[0]}")
    elif event == "socket.getaddrinfo" and isinstance(args[0], str):
        if args[0].endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if args[0] not in ("127.0.0.1", "localhost", "::1"):
            raise RuntimeError(f"a test looks up {args[0]}")


sys.addaudithook(refuse)
