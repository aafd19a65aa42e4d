"""What becomes of the generated text: a stream, records, or JSON. Stdout is the product."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llamacli.cli.console import Terminal
from llamacli.cli.jobs import Job
from llamacli.cli.prompt_sources import Records
from llamacli.generation import Generation, Piece, Token
from llamacli.machine_memory import peak_memory_bytes
from llamacli.timings import Timings
from llamacli.tokenizer import Tokenizer

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One text, and all that is known about it."""

    job: Job
    generation: Generation
    timings: Timings  # of the batch that it was made in

    @property
    def met_context(self) -> bool:
        """Whether it ended because the model can hold no more."""
        asked = self.job.params.max_new_tokens
        short = asked is None or len(self.generation.tokens) < asked
        return self.generation.finish_reason == "length" and short


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What every result of a run shares."""

    model: str
    revision: str | None
    device: str
    dtype: str
    kernels: str  # what computes: "avx512", "avx512 int8", …, or "torch"
    load_s: float
    lookup: int
    ranks: int
    tokenizer: Tokenizer


class Output(Protocol):
    """Receives the pieces of many results, which may come interleaved, and keeps their order."""

    def piece(self, index: int, piece: Piece) -> None:
        """One more piece of the result with this number."""

    def done(self, index: int, result: Result) -> None:
        """That result is complete."""

    def break_off(self) -> None:
        """An error ends the results here."""


class TextOutput:
    """Text as it comes. Of several results the first unfinished one streams, later ones wait.

    A result ends with a newline, unless it is empty. With `Records.LINES` each is one line, where
    a newline is written as \\n and a backslash as \\\\; with `Records.NULL` each ends with NUL.
    """

    def __init__(self, terminal: Terminal, records: Records) -> None:
        self._terminal, self._records = terminal, records
        self._end = "\0" if records is Records.NULL else "\n"
        self._current = 0
        self._begun = False
        self._waiting: dict[int, list[Piece]] = {}
        self._done: set[int] = set()

    def piece(self, index: int, piece: Piece) -> None:
        """Write it, or keep it until its turn."""
        if index == self._current:
            self._write(piece)
        else:
            self._waiting.setdefault(index, []).append(piece)

    def done(self, index: int, result: Result) -> None:
        """End the result, and write what has waited for it."""
        self._done.add(index)
        while self._current in self._done:
            if self._begun or self._records is not Records.WHOLE:
                self._terminal.write(self._end)
            self._begun = False
            self._current += 1
            for piece in self._waiting.pop(self._current, []):
                self._write(piece)

    def break_off(self) -> None:
        """End what was written of the current result."""
        if self._begun:
            self._terminal.write(self._end)

    def _write(self, piece: Piece) -> None:
        text = _one_line(piece.text) if self._records is Records.LINES else piece.text
        if not text:
            return
        self._begun = True
        if piece.token.logprob is None:
            self._terminal.write(text)
        else:
            self._terminal.write_styled(text, _confidence_style(piece.token.logprob))


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _confidence_style(logprob: float) -> str:
    """Colors that a color-blind reader can tell apart; the doubtful is underlined as well."""
    probability = math.exp(logprob)
    if probability >= 0.75:
        return "0"
    if probability >= 0.4:
        return "36"  # cyan
    return "33" if probability >= 0.1 else "4;35"  # yellow, underlined magenta


class JsonOutput:
    """One JSON object a result, a line each, in order."""

    def __init__(self, terminal: Terminal, facts: RunFacts) -> None:
        self._terminal, self._facts = terminal, facts
        self._current = 0
        self._waiting: dict[int, Result] = {}

    def piece(self, index: int, piece: Piece) -> None:
        """Nothing to show before the result is complete."""

    def done(self, index: int, result: Result) -> None:
        """Write it, or keep it until its turn."""
        self._waiting[index] = result
        while (ready := self._waiting.pop(self._current, None)) is not None:
            record = result_record(self._current, ready, self._facts)
            self._terminal.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._current += 1

    def break_off(self) -> None:
        """A result that is not complete is not shown."""


def result_record(index: int, result: Result, facts: RunFacts) -> dict[str, Any]:
    """The documented JSON object of one result."""
    generation = result.generation
    job, tokens, timings = result.job, generation.tokens, result.timings
    ended = bool(tokens) and generation.finish_reason == "stop" and generation.stop is None
    return {
        "schema_version": SCHEMA_VERSION,
        "index": index,
        "id": job.record.id,
        "sample": job.sample,
        "text": generation.text,
        "token_ids": [token.id for token in tokens],
        "finish_reason": generation.finish_reason,
        "stop_string": generation.stop,
        "stop_token_id": tokens[-1].id if ended else None,
        "seed": job.params.seed,
        "usage": {
            "prompt_tokens": len(job.prompt_ids),
            "completion_tokens": len(tokens),
            "total_tokens": len(job.prompt_ids) + len(tokens),
        },
        "timings": {
            "load_s": round(facts.load_s, 6),
            "prefill_s": round(timings.prefill_s, 6),
            "time_to_first_token_s": round(timings.time_to_first_token_s, 6),
            "decode_s": round(timings.decode_s, 6),
            "prefill_tokens_per_second": round(timings.prefill_tokens_per_second, 3),
            "decode_tokens_per_second": round(timings.decode_tokens_per_second, 3),
            "drafted_tokens": timings.drafted_tokens,
            "accepted_tokens": timings.accepted_tokens,
        },
        "logprobs": _logprobs(tokens, facts.tokenizer),
        "model": facts.model,
        "revision": facts.revision,
        "device": facts.device,
        "dtype": facts.dtype,
        "tp_size": facts.ranks,
    }


def _logprobs(tokens: Sequence[Token], tokenizer: Tokenizer) -> list[dict[str, Any]] | None:
    if not tokens or tokens[0].logprob is None:
        return None

    def shown(token_id: int, logprob: float | None) -> dict[str, Any]:
        text = tokenizer.id_to_bytes(token_id).decode("utf-8", "replace")
        return {"id": token_id, "token": text, "logprob": logprob}

    return [
        shown(token.id, token.logprob) | {"top": [shown(*other) for other in token.alternatives]}
        for token in tokens
    ]


def stats_table(results: Sequence[Result], facts: RunFacts) -> str:
    """Where time and memory went, for people."""
    batches = list({id(result.timings): result.timings for result in results}.values())
    prefill_s, decode_s = sum(t.prefill_s for t in batches), sum(t.decode_s for t in batches)
    prompt, decoded = sum(t.prompt_tokens for t in batches), sum(t.decoded_tokens for t in batches)
    seeds = ", ".join(str(result.job.params.seed) for result in results[:5])
    ends = Counter(_end(result, facts.tokenizer) for result in results)
    rows = {
        "load": f"{facts.load_s:.2f} s ({facts.dtype} on {facts.device}, {facts.kernels} kernels)",
        "prefill": _speed(prompt, prefill_s),
        "first token": f"{batches[0].time_to_first_token_s:.3f} s" if batches else "",
        "decode": _speed(decoded, decode_s),
        "lookup": _acceptance(batches),
        "ranks": f"{facts.ranks}; the memory is that of rank 0",
        "peak memory": f"{peak_memory_bytes() / 1e9:.2f} GB",
        "seed": seeds + (", …" if len(results) > 5 else ""),
        "finished by": ", ".join(f"{name} ({n})" if n > 1 else name for name, n in ends.items()),
    }
    if not facts.lookup:
        del rows["lookup"]
    if facts.ranks == 1:
        del rows["ranks"]
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())


def _speed(tokens: int, seconds: float) -> str:
    rate = tokens / seconds if seconds else 0.0
    return f"{tokens:,} tokens in {seconds:.3f} s, {rate:,.1f} tokens/s"


def _acceptance(batches: Sequence[Timings]) -> str:
    drafted = sum(timings.drafted_tokens for timings in batches)
    accepted = sum(timings.accepted_tokens for timings in batches)
    rate = accepted / drafted if drafted else 0.0
    return f"{accepted:,} of {drafted:,} drafted tokens accepted, {rate:.0%}"


def _end(result: Result, tokenizer: Tokenizer) -> str:
    """What ended a text: eos:2, stop:'\\n\\n' or length."""
    generation = result.generation
    if generation.stop is not None:
        return f"stop:{generation.stop!r}"
    if generation.finish_reason == "stop":
        token_id = generation.tokens[-1].id
        return f"eos:{token_id} {tokenizer.id_to_token(token_id)}"
    return "length"
