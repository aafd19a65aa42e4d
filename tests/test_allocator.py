"""What steps free is kept for the next step, where glibc is the allocator."""

import subprocess
import sys

import pytest

MEASURE = """
import ctypes, resource, sys
from llamacli.cli.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [bytes(range(1, 256)) * 80_000 for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
faults()
print(faults(), hasattr(ctypes.CDLL(None), "gnu_get_libc_version"))
"""


def page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, how], check=True, capture_output=True, text=True
    )
    count, is_glibc = done.stdout.split()
    if is_glibc != "True":
        pytest.skip("another allocator")
    return int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_memory_that_was_freed_is_taken_again_without_page_faults() -> None:
    assert page_faults("as it is") > 10_000
    assert page_faults("keep") < 100
