"""Command lines, run here or in a process of their own, and a model whose text is known."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llamacli.cli.app import run_command_line
from llamacli.cli.console import Terminal
from llamacli.config import LlamaConfig
from llamacli.model import LlamaForCausalLM
from llamacli.tokenizer_fast import load_tokenizer
from tests.tiny import SIZES, write_tokenizer

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


def here(*args: object, stdin: bytes = b"", tty_stdin: bool = False) -> Done:
    """Run a command line in this process."""
    source = _AsTerminal(stdin) if tty_stdin else io.BytesIO(stdin)
    out, err = io.BytesIO(), io.BytesIO()
    code = run_command_line([str(arg) for arg in args], Terminal(source, out, err, {}))
    return Done(code, out.getvalue(), err.getvalue().decode())


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what would change the program, and with `variables`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMACLI_", "LC_", "LANG"))}
    kept = {k: v for k, v in kept.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    return kept | {"OMP_NUM_THREADS": "1", "TERM": "xterm-256color"} | variables


def program(
    *args: object, stdin: bytes = b"", env: Mapping[str, str] | None = None, **settings: Any
) -> Done:
    """Run the real program."""
    command = [*PROGRAM, *map(str, args)]
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        env=environment(**env or {}),
        timeout=60,
        **settings,
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
