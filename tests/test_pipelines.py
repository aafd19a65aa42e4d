"""The pipelines against those of transformers, on the same random folders."""

import dataclasses
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llamacli.auto import AutoTokenizer
from llamacli.config import LlamaConfig
from llamacli.errors import RequestError, TokenizerError
from llamacli.heads import (
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)
from llamacli.loading import PreTrainedModel
from llamacli.model import LlamaForCausalLM
from llamacli.pipelines.factory import pipeline
from llamacli.tokenizer_offsets import place_tokens
from tests.command_line import TALE, write_chain
from tests.tiny import SIZES, write_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% if not loop.last %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\nassistant:{% endif %}"
)
TEXT = "The sun sees Zoé by the river. 🦙 stone  bird"
CHAT = [{"role": "user", "content": "The sun"}]
HEADS: dict[str, type[PreTrainedModel]] = {
    "text-generation": LlamaForCausalLM,
    "text-classification": LlamaForSequenceClassification,
    "token-classification": LlamaForTokenClassification,
    "question-answering": LlamaForQuestionAnswering,
}
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "LOC"}


def write(folder: Path, task: str, **settings: Any) -> Path:
    """A model folder with random weights, that both libraries read."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder)
    if task == "text-generation":
        write_chain(folder, TALE, loop=True)  # it says words: noise is shown differently
    files = {"legacy": False, "pad_token": "</s>", "chat_template": TEMPLATE}
    tokenizer = AutoTokenizer.from_pretrained(folder, **files)
    tokenizer.save_pretrained(folder)
    if task == "text-generation":
        return folder
    torch.manual_seed(3)
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256, "id2label": LABELS}
    config = LlamaConfig(**SIZES | sizes | {"eos_token_id": None, "pad_token_id": 2} | settings)
    HEADS[task](config).save_pretrained(folder)  # type: ignore[call-arg]
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {task: write(root / task, task) for task in HEADS}


def both(folder: Path, task: str, **options: Any) -> tuple[Any, Any]:
    reference = transformers.pipeline(task, model=str(folder), device="cpu", **options)
    return pipeline(task, folder, device="cpu", **options), reference


def rounded(found: Any) -> Any:
    """Plain Python numbers, where a rounding error does not matter."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return found if isinstance(found, str | int) else round(float(found), 4)


# ------------------------------------------------------------------------------- text-generation

GREEDY = {"do_sample": False, "max_new_tokens": 8}
SAMPLED = {"do_sample": True, "num_return_sequences": 2, "seed": 3}


@pytest.mark.filterwarnings("ignore")  # transformers warns of its own defaults
@pytest.mark.parametrize(
    "inputs", ["The sun", ["The sun", "bird sees"], CHAT, [CHAT, CHAT]], ids=str
)
def test_texts_and_chats_have_the_shapes_and_ids_of_transformers(
    folders: dict[str, Path], inputs: Any
) -> None:
    ours, theirs = both(folders["text-generation"], "text-generation")
    for options in ({"return_tensors": True}, {}, {"return_full_text": False}):
        found = ours(inputs, **GREEDY, **options)
        expected = theirs(inputs, **GREEDY, **options)
        # transformers loses the blank before the first new word of a prompt that is continued.
        assert str(found).replace(" ", "") == str(expected).replace(" ", "")


def test_a_continued_text_keeps_its_blank(folders: dict[str, Path]) -> None:
    generate = pipeline("text-generation", folders["text-generation"], device="cpu", **GREEDY)
    [ids] = generate("The sun", return_tensors=True)
    [text] = generate("The sun")
    [new] = generate("The sun", return_full_text=False)
    whole = generate.tokenizer.decode(ids["generated_token_ids"], skip_special_tokens=True)
    assert text["generated_text"] == whole == "The sun" + new["generated_text"]


def test_a_chat_that_ends_with_the_assistant_is_continued_there(folders: dict[str, Path]) -> None:
    generate = pipeline("text-generation", folders["text-generation"], device="cpu", **GREEDY)
    chat = [*CHAT, {"role": "assistant", "content": "The moon"}]
    [record] = generate(chat)
    messages = record["generated_text"]
    assert messages[0] == CHAT[0]
    assert len(messages) == 2
    assert messages[1]["content"].startswith("The moon")
    assert len(messages[1]["content"]) > len("The moon")


def test_defaults_are_drawn_and_options_reach_generate(folders: dict[str, Path]) -> None:
    generate = pipeline("text-generation", folders["text-generation"], device="cpu")
    first, again = (
        generate("The", max_length=12, seed=5, num_return_sequences=2, return_tensors=True)
        for _ in range(2)
    )
    assert first == again
    assert len(first) == 2
    assert len(first[0]["generated_token_ids"]) == 12
    cut = generate("The", **GREEDY, return_full_text=False, stop_sequence=["river"])
    assert cut == [{"generated_text": " moon sees river"}]


def test_a_batch_gives_what_each_prompt_gives_alone(folders: dict[str, Path]) -> None:
    generate = pipeline("text-generation", folders["text-generation"], device="cpu", **GREEDY)
    prompts = ["The sun", "bird sees the moon by", CHAT, "The"]
    generate.model.config = dataclasses.replace(generate.model.config, pad_token_id=0)
    for options in ({}, {"return_tensors": True}, {"stop_sequence": "river"}, SAMPLED):
        alone = [generate(prompt, **options) for prompt in prompts]
        for size in (2, 3, 9):
            assert generate(prompts, batch_size=size, **options) == alone


# --------------------------------------------------------------------------- text-classification


@pytest.mark.parametrize("top_k", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}], ids=str)
@pytest.mark.parametrize("inputs", [TEXT, ["sun", TEXT, "The"], {"text": "sun"}], ids=str)
@pytest.mark.parametrize("batch", [{}, {"batch_size": 2}], ids=str)
def test_labels_equal(
    folders: dict[str, Path], inputs: Any, top_k: dict[str, Any], batch: dict[str, Any]
) -> None:
    ours, theirs = both(folders["text-classification"], "text-classification", **batch)
    for function in ({}, *({"function_to_apply": name} for name in ("sigmoid", "none"))):
        found, expected = (run(inputs, **top_k, **function) for run in (ours, theirs))
        assert rounded(found) == rounded(expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"id2label": {0: "size"}},
        {"problem_type": "regression"},
        {"problem_type": "multi_label_classification"},
    ],
    ids=str,
)
def test_scores_follow_the_problem(tmp_path: Path, settings: dict[str, Any]) -> None:
    ours, theirs = both(write(tmp_path, "text-classification", **settings), "text-classification")
    assert rounded(ours(TEXT, top_k=None)) == rounded(theirs(TEXT, top_k=None))


def test_a_text_may_have_a_pair_and_be_cut(folders: dict[str, Path]) -> None:
    classify = pipeline("text-classification", folders["text-classification"], device="cpu")
    alone, together = classify([{"text": "sun"}, {"text": "sun", "text_pair": "moon"}])
    assert alone["score"] != together["score"]
    cut = classify("sun moon river", truncation=True, max_length=2)
    assert cut == classify("sun")
    with pytest.raises(RequestError, match="the model takes 1 to 256"):
        classify("sun " * 300)


# -------------------------------------------------------------------------- token-classification


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("inputs", [TEXT, [TEXT, "bird", "sun\nmoon"]], ids=str)
@pytest.mark.parametrize("batch", [{}, {"batch_size": 2}], ids=str)
def test_entities_equal(
    folders: dict[str, Path], inputs: Any, strategy: str, batch: dict[str, Any]
) -> None:
    options = {"aggregation_strategy": strategy, **batch}
    ours, theirs = both(folders["token-classification"], "token-classification", **options)
    for ignored in ({}, {"ignore_labels": ["LOC"]}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "does not support real words"
            expected = rounded(theirs(inputs, **ignored))
        found = rounded(ours(inputs, **ignored))
        assert found
        if batch and strategy == "none" and isinstance(inputs, list):
            assert found == rounded([ours(text, **ignored) for text in inputs])
            for entity in chain(*found, *expected):
                del entity["index"]  # theirs counts the padding
        if strategy not in ("none", "simple"):  # where they lose the blanks between words
            found, expected = (str(value).replace(" ", "") for value in (found, expected))
        assert found == expected


@pytest.mark.parametrize("stride", [0, 3, 5])
@pytest.mark.parametrize("batch", [{}, {"batch_size": 3}], ids=str)
def test_entities_of_windows_equal(
    folders: dict[str, Path], stride: int, batch: dict[str, Any]
) -> None:
    options = {"aggregation_strategy": "simple", "stride": stride, **batch}
    ours, theirs = both(folders["token-classification"], "token-classification")
    ours.tokenizer.model_max_length = theirs.tokenizer.model_max_length = 12
    for inputs in ("sun", f"{TEXT} {CONTEXT}", [CONTEXT, "sun", f"{CONTEXT} {TEXT}"]):
        found = rounded(ours(inputs, **options))
        assert found == rounded(theirs(inputs, **options))
    assert len(found[2]) > 3
    with pytest.raises(RequestError, match="below 11, got 11"):
        ours(TEXT, **options | {"stride": 11})


def test_places_are_those_of_the_fast_tokenizer(folders: dict[str, Path]) -> None:
    folder = folders["text-generation"]
    ours, theirs = (
        library.from_pretrained(folder) for library in (AutoTokenizer, transformers.AutoTokenizer)
    )
    for text in (TEXT, "a", "", "sun\nmoon", "<s> sun</s>moon x", "Zoé 🦙"):
        placed = place_tokens(ours, text)
        expected = theirs(text, return_offsets_mapping=True, add_special_tokens=False)
        assert [token.id for token in placed] == expected["input_ids"]
        assert [(token.start, token.end) for token in placed] == expected["offset_mapping"]


def test_a_tokenizer_that_changes_the_text_has_no_places(folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["text-generation"])
    tokenizer.id_to_bytes = lambda token_id: b"x"  # type: ignore[method-assign]
    with pytest.raises(TokenizerError, match="spell another text"):
        place_tokens(tokenizer, "sun")


# ---------------------------------------------------------------------------- question-answering

QUESTION = "Who sees the sun?"
CONTEXT = "The bird sees the sun. The child carries a stone by the river, and winter follows."


def windows(length: int, room: int, stride: int) -> list[range]:
    found = [range(min(room, length))]
    while found[-1].stop < length:
        start = found[-1].start + room - stride
        found.append(range(start, min(start + room, length)))
    return found


def expected_answers(folder: Path, room: int, stride: int, longest: int) -> dict[Any, float]:
    """Every span of at most so many tokens, and its score, by transformers' model."""
    model = transformers.LlamaForQuestionAnswering.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    context = tokenizer(CONTEXT, return_offsets_mapping=True, add_special_tokens=False)
    question = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    scores: dict[Any, float] = {}
    for window in windows(len(context["input_ids"]), room, stride):
        ids = [1, *(context["input_ids"][i] for i in window), 1, *question]
        with torch.no_grad():
            out = model(torch.tensor([ids]))
        inside = slice(1, len(window) + 1)
        start, end = out.start_logits[0, inside].softmax(0), out.end_logits[0, inside].softmax(0)
        for first in range(len(window)):
            for last in range(first, min(first + longest, len(window))):
                begin = context["offset_mapping"][window[first]][0]
                stop = context["offset_mapping"][window[last]][1]
                span = (stop - len(CONTEXT[begin:stop].lstrip()), stop)
                scores[span] = max(scores.get(span, 0), float(start[first] * end[last]))
    return scores


@pytest.mark.parametrize(("max_seq_len", "doc_stride"), [(200, 128), (30, 5), (30, 0), (24, 999)])
def test_answers_are_the_best_spans_of_all_windows(
    folders: dict[str, Path], max_seq_len: int, doc_stride: int
) -> None:
    folder = folders["question-answering"]
    answer = pipeline("question-answering", folder, device="cpu", max_answer_len=4)
    question = answer.tokenizer.encode(QUESTION, add_special_tokens=False)
    room = max_seq_len - len(question) - 2
    expected = expected_answers(folder, room, min(doc_stride, room // 2), 4)
    best = sorted(expected.items(), key=lambda item: -item[1])
    sizes = {"max_seq_len": max_seq_len, "doc_stride": doc_stride}
    found = answer(question=QUESTION, context=CONTEXT, top_k=3, **sizes)
    assert [(a["start"], a["end"]) for a in found] == [span for span, _ in best[:3]]
    assert [a["score"] for a in found] == pytest.approx([score for _, score in best[:3]], rel=1e-3)
    assert all(a["answer"] == CONTEXT[a["start"] : a["end"]] for a in found)
    for size in (2, 9):
        batched = answer(question=QUESTION, context=CONTEXT, top_k=3, batch_size=size, **sizes)
        assert rounded(batched) == rounded(found)
    example = {"question": QUESTION, "context": CONTEXT}
    assert answer([example, example], **sizes) == [answer(example, **sizes)] * 2 == [found[0]] * 2


def test_an_example_needs_both_and_room(folders: dict[str, Path]) -> None:
    answer = pipeline("question-answering", folders["question-answering"], device="cpu")
    for example in ("text", {"question": "x"}, {"question": " ", "context": "x"}):
        with pytest.raises(RequestError, match="a question and a context"):
            answer(example)
    with pytest.raises(RequestError, match="no room"):
        answer(question=QUESTION, context=CONTEXT, max_seq_len=8)


def test_the_context_comes_last_where_padding_is_on_the_right(folders: dict[str, Path]) -> None:
    answer = pipeline("question-answering", folders["question-answering"], device="cpu")
    before = answer(question=QUESTION, context=CONTEXT)
    answer.tokenizer.padding_side = "right"
    after = answer(question=QUESTION, context=CONTEXT)
    assert after["answer"] == CONTEXT[after["start"] : after["end"]]
    assert after["score"] != before["score"]


# ---------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("task", HEADS)
def test_what_is_not_supported_is_named(folders: dict[str, Path], task: str) -> None:
    example = {"question": "x", "context": "x"} if task == "question-answering" else "sun"
    with pytest.raises(TypeError, match="num_workers"):
        pipeline(task, folders[task], device="cpu", num_workers=2)(example)
    with pytest.raises(RequestError, match=r"(text|prompt|example) must"):
        pipeline(task, folders[task], device="cpu")(5)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("text-classification", {"top_k": 0}),
        ("text-classification", {"function_to_apply": "tanh"}),
        ("token-classification", {"aggregation_strategy": "last"}),
        ("token-classification", {"stride": 3}),
        ("question-answering", {"top_k": 0}),
        *((task, {"batch_size": 0}) for task in HEADS),
    ],
)
def test_values_that_mean_nothing_are_named(
    folders: dict[str, Path], task: str, options: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match=next(iter(options))):
        pipeline(task, folders[task], device="cpu", **options)


def test_a_model_and_its_tokenizer_may_be_there_already(folders: dict[str, Path]) -> None:
    folder = folders["text-classification"]
    model = LlamaForSequenceClassification.from_pretrained(folder, device="cpu")
    expected = pipeline("sentiment-analysis", folder, device=-1, torch_dtype=torch.float32)("sun")
    assert pipeline("text-classification", model, tokenizer=folder)("sun") == expected
    with pytest.raises(RequestError, match="needs its tokenizer"):
        pipeline("text-classification", model)
    with pytest.raises(RequestError, match="device"):
        pipeline("text-classification", model, tokenizer=folder, device="cpu")
    with pytest.raises(RequestError, match="needs a LlamaForTokenClassification, got a"):
        pipeline("ner", model, tokenizer=folder)
    with pytest.raises(RequestError, match="task must be one of text-generation"):
        pipeline("translation", folder)
