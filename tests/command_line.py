"""Command lines, run here or in a process of their own, and a model whose text is known."""

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llamacli.cli.app import run_command_line
from llamacli.cli.console import Terminal
from llamacli.config import LlamaConfig
from llamacli.model import LlamaForCausalLM
from llamacli.tokenizer_fast import load_tokenizer
from tests.probe import environment
from tests.tiny import SIZES, write_tokenizer

TALE = ["▁moon", "▁sees", "▁river", ".", "▁T", "he", "▁bird", "▁follows", "▁sun"]
PROGRAM = [sys.executable, "-m", "llamacli"]


@dataclass(frozen=True)
class Done:
    """What a command line left behind."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        assert (self.code, self.err) == (0, "")
        return self.out.decode()

    @property
    def records(self) -> list[dict[str, Any]]:
        assert self.code == 0, self.err
        return [json.loads(line) for line in self.out.splitlines()]


class _AsTerminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def here(*args: object, stdin: bytes = b"", tty: Sequence[str] = (), **variables: str) -> Done:
    """Run a command line in this process; `tty` names the streams that are terminals."""
    source, out, err = (
        (_AsTerminal if name in tty else io.BytesIO)(data)
        for name, data in {"stdin": stdin, "stdout": b"", "stderr": b""}.items()
    )
    code = run_command_line([str(arg) for arg in args], Terminal(source, out, err, variables))
    return Done(code, out.getvalue(), err.getvalue().decode())


def run(model: Path, *args: object, stdin: bytes = b"") -> Done:
    """Run `llamacli run` here."""
    return here("run", "-m", model, *args, stdin=stdin)


def greedy(model: Path, *args: object, stdin: bytes = b"") -> bytes:
    done = run(model, "--greedy", "-n", 12, *args, stdin=stdin)
    assert (done.code, done.err) == (0, "")
    return done.out


def record(model: Path, *args: object, stdin: bytes = b"") -> dict[str, Any]:
    (found,) = run(model, "--json", *args, stdin=stdin).records
    return found


def prompt_length(model: Path, *args: object, stdin: bytes = b"") -> int:
    found = record(model, "-n", 1, *args, stdin=stdin)
    return int(found["usage"]["prompt_tokens"])


def refused(done: Done, *words: str, code: int = 2) -> None:
    """One line of error with these words, at most one hint, and no output."""
    assert (done.code, done.out) == (code, b""), done.err
    lines = done.err.splitlines()
    assert lines[0].startswith("llamacli: error: ")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))
    for word in words:
        assert word in done.err, done.err


def start(*args: object, **settings: Any) -> subprocess.Popen[bytes]:
    """Start the real program with pipes."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([*PROGRAM, *map(str, args)], env=environment(), **pipes | settings)


def in_shell(line: str, **variables: str) -> Done:
    """Run a line of bash in which {llamacli} is the program; the code is the first command's."""
    line = line.replace("{llamacli}", shlex.join(PROGRAM))
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        env=environment(**variables),
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


def write_chain(folder: Path, tokens: Sequence[str], *, loop: bool = False, **sizes: Any) -> None:
    """A model folder whose model says these tokens, whatever the prompt, then the end or again.

    The next token depends on the last one alone: the embeddings are one-hot, attention and MLP
    add nothing, and the head holds a table of followers. So no token can occur twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert len(set(ids)) == len(ids)
    assert tokenizer.unk_token_id not in ids
    sizes = {"num_hidden_layers": 1, "intermediate_size": 8, "num_key_value_heads": 1} | sizes
    sizes |= {"vocab_size": tokenizer.vocab_size, "hidden_size": 512, "head_dim": 8}
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"eos_token_id": 2} | sizes))
    followers = torch.full((tokenizer.vocab_size,), ids[0])
    followers[ids] = torch.tensor([*ids[1:], ids[0] if loop else 2])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.fill_diagonal_(1)
        model.model.norm.weight.fill_(1)
        model.lm_head.weight[followers, torch.arange(tokenizer.vocab_size)] = 1
    model.save_pretrained(folder)
