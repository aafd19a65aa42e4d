"""From a request to prompt ids that leave room in the model's context."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llamacli.context_window import Side, cut, prompt_limit, token_budget, truncate
from llamacli.errors import RequestError
from llamacli.model_folder import ModelFolder
from llamacli.prompts import encode_prompts
from llamacli.request import GenerationRequest, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEncoder:
    """Encodes prompts for a model.

    Attributes:
        template: the chat template; None for a model that continues prompts as they are.
        parse_special: special tokens typed in a plain prompt count as such.
        side: where a prompt that is too long may be cut; None refuses it.
    """

    folder: ModelFolder
    template: str | None
    parse_special: bool
    side: Side | None

    def encode(self, *requests: GenerationRequest) -> list[list[int]]:
        """The ids of each whole prompt; many are quicker together."""
        return encode_prompts(
            requests, self.folder.tokenizer, self.template, parse_special=self.parse_special
        )

    def fit(
        self, request: GenerationRequest, ids: list[int], max_new_tokens: int | None
    ) -> list[int]:
        """The ids of a prompt, cut where they are too many.

        Of a chat the longest message is cut: the template has to stay whole.

        Raises:
            RequestError: it is too long, and may not be cut.
        """
        context = self.folder.config.context_length
        if self.side is None or len(ids) < context:
            self._check_room(context, len(ids))
            return ids
        if request.messages is None:
            return truncate(ids, context, max_new_tokens, self.side)
        limit = prompt_limit(context, max_new_tokens)
        return self._cut_message(request, request.messages, ids, limit, self.side)

    def _check_room(self, context: int, length: int) -> None:
        try:
            token_budget(context, length, None)
        except RequestError as problem:
            hint = "shorten it, or cut it with --truncate left, right or middle"
            raise RequestError(str(problem), hint=hint) from None

    def _cut_message(
        self,
        request: GenerationRequest,
        messages: Sequence[Message],
        ids: list[int],
        limit: int,
        side: Side,
    ) -> list[int]:
        tokenizer = self.folder.tokenizer
        contents = [tokenizer.encode_segments([message["content"]]) for message in messages]
        longest = max(range(len(contents)), key=lambda index: len(contents[index]))
        keep = len(contents[longest])
        while len(ids) > limit:  # at times a cut text has more tokens than are left of it
            keep -= len(ids) - limit
            if keep < 1:
                raise RequestError("the chat fills the context without its longest message")
            shorter = Message(
                role=messages[longest]["role"],
                content=tokenizer.decode(cut(contents[longest], keep, side)),
            )
            changed = [*messages[:longest], shorter, *messages[longest + 1 :]]
            [ids] = self.encode(replace(request, messages=changed))
        return ids
