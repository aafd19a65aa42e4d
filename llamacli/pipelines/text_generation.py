"""text-generation: prompts or chats in, texts out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llamacli.batch_generation import generate_rows
from llamacli.errors import RequestError, printable
from llamacli.model import LlamaForCausalLM
from llamacli.pipelines.base import Pipeline, PipelineOptions, as_text, batches
from llamacli.prompts import choose_template, encode_prompts
from llamacli.request import GenerationRequest, check_messages
from llamacli.stream_decoder import StreamDecoder

# What the pipeline of transformers takes where neither the caller nor the model says anything.
DEFAULTS: Mapping[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions(PipelineOptions):
    """What a call takes besides the options of `generate`.

    Attributes:
        return_full_text: prompt and new text; otherwise the new text alone.
        return_tensors: token ids of both in place of text.
        stop_sequence: the texts that end the new text, and stay in it.
        batch_size: prompts at once.
    """

    return_full_text: bool = True
    return_tensors: bool = False
    stop_sequence: str | Sequence[str] | None = None


class TextGenerationPipeline(Pipeline):
    """Continues prompts, and answers chats."""

    task = "text-generation"
    opens = LlamaForCausalLM

    def _chosen(self, options: dict[str, Any]) -> tuple[TextOptions, dict[str, Any]]:
        """The pipeline's own options, and those of `generate`, which checks them itself."""
        names = {field.name for field in fields(TextOptions)}
        own: dict[str, Any] = {}
        generate: dict[str, Any] = {}
        for name, value in (self.defaults | options).items():
            (own if name in names else generate)[name] = value
        return TextOptions(**own), generate

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """Continue a prompt or a chat, or each of several.

        A chat whose last message is the assistant's is continued in that message.

        Args:
            inputs: a string, a chat (a list of messages with role and content), or a list of these.
            options: fields of `TextOptions`, and options of `LlamaForCausalLM.generate`. Where
                nothing is said the model's generation_config counts, then `DEFAULTS`.

        Returns:
            of one prompt a list with `{"generated_text": …}` for each returned sequence; of several
            a list of such lists. The text of a chat is the list of its messages, answer included.

        Raises:
            TypeError: an option that is not supported, by name.
            RequestError: an input of another kind, and as `generate`.
        """
        chosen, generate = self._chosen(options)
        if isinstance(inputs, str) or _is_chat(inputs):
            [records] = self._records([inputs], chosen, generate)
            return records
        if not isinstance(inputs, list | tuple):
            shown = printable(repr(inputs))
            raise RequestError(f"a prompt must be a string or a list of messages, got {shown}")
        return [
            records
            for prompts in batches(inputs, chosen.batch_size)
            for records in self._records(prompts, chosen, generate)
        ]

    def _records(
        self, prompts: Sequence[Any], chosen: TextOptions, generate: dict[str, Any]
    ) -> Iterator[list[dict[str, Any]]]:
        """For each prompt what comes of it, once for each returned sequence."""
        prompt_ids = [self._encode(prompt) for prompt in prompts]
        if not all(prompt_ids):
            raise RequestError("the prompt is empty")
        input_ids, mask = self.padded(prompt_ids, "left")
        settings = self._settings(chosen, generate)
        model: Any = self.model
        rows = generate_rows(model, input_ids, attention_mask=mask, **settings)
        for prompt, ids, new in zip(
            prompts, prompt_ids, batches(rows, len(rows) // len(prompts)), strict=True
        ):
            yield [self._record(prompt, ids, new_ids, chosen) for new_ids in new]

    def _record(
        self, prompt: Any, ids: list[int], new_ids: list[int], chosen: TextOptions
    ) -> dict[str, Any]:
        if chosen.return_tensors:
            return {"generated_token_ids": ids + new_ids}
        return {"generated_text": self._text(prompt, ids, new_ids, chosen)}

    def _settings(self, chosen: TextOptions, generate: dict[str, Any]) -> dict[str, Any]:
        defaults = {**DEFAULTS, **self.model.generation_config.sampling}
        if "max_length" in generate:
            del defaults["max_new_tokens"]
        settings = defaults | generate
        if chosen.stop_sequence is not None:
            settings["stop_strings"] = chosen.stop_sequence
        if "stop_strings" in settings:
            settings.setdefault("tokenizer", self.tokenizer)
        return settings

    def _encode(self, prompt: Any) -> list[int]:
        if not _is_chat(prompt):
            return self.tokenizer.encode(as_text(prompt))
        check_messages(prompt)
        prefill = prompt[-1]["content"] if _continues(prompt) else ""
        messages = prompt[:-1] if prefill else prompt
        request = GenerationRequest(messages=messages, prefill=prefill)
        [ids] = encode_prompts([request], self.tokenizer, choose_template(self.tokenizer))
        return ids

    def _text(self, prompt: Any, ids: list[int], new_ids: list[int], chosen: TextOptions) -> Any:
        is_answer = _is_chat(prompt) and not _continues(prompt)
        decoder = StreamDecoder(self.tokenizer, continues=() if is_answer else ids)
        text = "".join(map(decoder.push, new_ids)) + decoder.flush()
        if not chosen.return_full_text:
            return text
        if isinstance(prompt, str):
            return prompt + text
        if is_answer:
            return [*prompt, {"role": "assistant", "content": text}]
        return [*prompt[:-1], prompt[-1] | {"content": prompt[-1]["content"] + text}]


def _is_chat(prompt: object) -> bool:
    return isinstance(prompt, list | tuple) and bool(prompt) and isinstance(prompt[0], Mapping)


def _continues(messages: Sequence[Mapping[str, str]]) -> bool:
    return bool(messages[-1]["role"] == "assistant" and messages[-1]["content"])
