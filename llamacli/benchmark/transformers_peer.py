"""transformers measures what llamacli measures, in a process of its own.

Lines of JSON come in on stdin: the config, then for each repetition a case and its threads. Each is
answered by a line on stdout: the version, then seconds; an object tells an error.
"""

import json
import os
import sys
import time
from typing import Any

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llamacli.benchmark.random_weights import fill_with_noise


def make_model(values: dict[str, Any]) -> Any:
    """A model of this config with random weights, which `torch.nn.init` takes long to make."""
    dtype = getattr(torch, values.pop("torch_dtype") or "bfloat16")
    values.pop("quantization_config", None)
    config = transformers.LlamaConfig(**values)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(dtype)
    model.to_empty(device="cpu")
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    for parameter in model.parameters():
        fill_with_noise(parameter.data.view(-1))
    return model.eval()


class Runner:
    """Repetitions of cases: each keeps its cache, and warms up first."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._caches: dict[tuple[int, ...], Any] = {}

    @torch.inference_mode()
    def __call__(self, case: dict[str, int], threads: int) -> float:
        """Seconds of one repetition."""
        torch.set_num_threads(threads)
        key = tuple(case.values())
        if key not in self._caches:
            cache = self._caches[key] = transformers.DynamicCache(config=self._model.config)
            if case["depth"]:
                self._step(cache, case["batch"], case["depth"])
            self._repetition(cache, case, min(case["new_tokens"], 4))
        return self._repetition(self._caches[key], case, case["new_tokens"])

    def _repetition(self, cache: Any, case: dict[str, int], new_tokens: int) -> float:
        if extra := cache.get_seq_length() - case["depth"]:
            cache.crop(-extra)
        start = time.perf_counter()
        if case["prompt_tokens"]:
            self._step(cache, case["batch"], case["prompt_tokens"])
        for _ in range(new_tokens):
            self._step(cache, case["batch"], 1)
        return time.perf_counter() - start

    def _step(self, cache: Any, batch: int, tokens: int) -> None:
        token_ids = torch.randint(self._model.config.vocab_size, (batch, tokens))
        self._model(token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def main() -> None:
    """Answer lines until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        run = Runner(make_model(json.loads(sys.stdin.readline())))
        answer(transformers.__version__)
        for line in sys.stdin:
            answer(run(**json.loads(line)))
    except Exception as problem:
        answer({"error": f"{type(problem).__name__}: {problem}"})


if __name__ == "__main__":
    main()
