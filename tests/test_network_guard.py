import socket
import subprocess
import sys

import pytest


def test_no_test_reaches_a_network() -> None:
    with socket.socket() as out, pytest.raises(RuntimeError, match=r"connects to 192\.0\.2\.1"):
        out.connect(("192.0.2.1", 80))
    with pytest.raises(RuntimeError, match=r"looks up huggingface\.co"):
        socket.getaddrinfo("huggingface.co", 443)


def test_no_process_of_a_test_reaches_a_network() -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RuntimeError: a test looks up 192.0.2.1" in done.stderr
