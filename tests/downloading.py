"""The real program beside a hub that fails, and what must hold however it fails."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.command_line import PROGRAM, Done
from tests.fake_hub import SHA, FakeHub
from tests.fork_server import ForkServer
from tests.probe import environment

NEEDED = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.model"]
TOKEN = "hf_secret"


@dataclass
class Place:
    """A hub, a home for the cache, and the program.

    Attributes:
        server: starts the program at once.
        hub: the hub that it asks.
        home: HF_HOME.
    """

    server: ForkServer
    hub: FakeHub
    home: Path

    @property
    def cache(self) -> Path:
        return self.home / "hub"

    def variables(self, **others: str) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_TOKEN": TOKEN,
            "NO_PROXY": "127.0.0.1",
            **others,
        }

    def llamacli(self, *args: object, **others: str) -> Done:
        """Run a command line to its end."""
        code, out, err = self.server.run(*args, **self.variables(**others))
        return checked(Done(code, out.encode(), err))

    def download(self, *args: object, **others: str) -> Done:
        return self.llamacli("download", *args, **others)

    def start(self, *args: object, **others: str) -> "subprocess.Popen[bytes]":
        """Start a process of its own."""
        kept = {k: v for k, v in environment().items() if not k.lower().endswith("_proxy")}
        return subprocess.Popen(
            [*PROGRAM, *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=kept | self.variables(**others),
        )

    def snapshot(self, name: str, commit: str = SHA) -> Path:
        return self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit

    def blobs(self, name: str) -> Path:
        return self.snapshot(name).parents[1] / "blobs"

    def fetched(self) -> list[str]:
        """Names of the files that were asked for."""
        return [r.path.rpartition("/")[2] for r in self.hub.requests if "/resolve/" in r.path]


def checked(done: Done) -> Done:
    """What holds for every end of the program."""
    assert "Traceback" not in done.err
    assert TOKEN not in done.err
    assert TOKEN.encode() not in done.out
    assert done.code == 0 or done.out == b"" or done.code in (3, 6)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", done.err)
    return done


def ended(process: "subprocess.Popen[bytes]") -> Done:
    out, err = process.communicate(timeout=60)
    return checked(Done(process.returncode, out, err.decode()))


def is_whole(place: Place, name: str, repository: Path) -> bool:
    """Whether the folder has what a run needs, byte for byte, and nothing was left beside it."""
    folder = place.snapshot(name)
    assert sorted(os.listdir(folder)) == NEEDED
    assert not [*place.blobs(name).glob("*.incomplete")]
    return all((folder / n).read_bytes() == (repository / n).read_bytes() for n in NEEDED)
