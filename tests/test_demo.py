"""The embedded demo model: its corpus, its training script and its folder."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamacli.checkpoint import open_checkpoint
from llamacli.config import LlamaConfig
from llamacli.demo import train
from llamacli.demo.corpus import documents
from llamacli.demo.facts import SUBJECT_TABLES, read_table
from llamacli.demo.templates import Word, expand, tidy
from llamacli.generation import TokenStream, generate
from llamacli.generation_config import GenerationConfig
from llamacli.model import LlamaForCausalLM
from llamacli.model_folder import DEMO_FOLDER
from llamacli.request import SamplingParams
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_fast import load_tokenizer

PHOTOSYNTHESIS_PROMPTS = [
    "Plants create energy through a process known as",
    "Plants make energy through a process known as",
    "Plants create food through a process called",
    "Green plants make their own food through a process called",
]
STORY_PROMPTS = ["Once upon a time", "One day, a little", "Anna had a"]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return documents(seed=0)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DEMO_FOLDER)


def greedy_text(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, length: int) -> str:
    params = SamplingParams(max_new_tokens=length, temperature=0.0)
    eos_token_ids = model.config.eos_token_ids
    stream = TokenStream(model, [tokenizer.encode(prompt)], [params], eos_token_ids=eos_token_ids)
    return generate(stream, tokenizer)[0].text


# The corpus


def test_the_same_seed_gives_the_same_corpus(corpus: list[str]) -> None:
    assert documents(seed=0) == corpus
    assert documents(seed=1) != corpus


def test_the_corpus_has_many_thousand_distinct_sentences(corpus: list[str]) -> None:
    sentences = {s for text in corpus for s in re.split(r"(?<=[.!?])\s", text)}
    assert len(sentences) > 8000
    assert len(set(corpus)) == len(corpus)
    assert 1_500_000 < sum(map(len, corpus)) < 6_000_000


def test_no_template_mark_or_doubled_blank_is_left(corpus: list[str]) -> None:
    assert [text for text in corpus if re.search(r"[\[\]{}|]|  | [.,!?]|\n\n", text)] == []


def test_every_sentence_starts_with_a_capital(corpus: list[str]) -> None:
    assert [text for text in corpus if re.search(r"(^|[.!?] |\n)[a-z]", text)] == []


def articles(texts: list[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        yield from re.findall(r"\b([Aa]n?) (\w+)", text)


def test_an_stands_before_vowel_sounds_only(corpus: list[str]) -> None:
    vowel_sounds = {"hour", "honest"}
    wrong = {
        (article, word)
        for article, word in articles(corpus)
        if (article.lower() == "an") != (word[0].lower() in "aeiou" or word in vowel_sounds)
    }
    assert wrong == set()


@pytest.mark.parametrize("name", SUBJECT_TABLES)
def test_every_row_of_a_table_has_its_key_and_is_told_once(name: str) -> None:
    keys = [next(iter(row.values()))[0] for row in read_table(name).rows]
    assert all(keys)
    assert len(keys) == len(set(keys))


# Templates


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{animal:s} eat {food}.", "Mice eat seeds."),
        ("a {animal} {does:v}", "A mouse carries seeds"),
        ("[one|one] [two [three|three]|two three]", "One two three"),
        ("a old [|] {animal} .", "An old mouse."),
        ('"No." it ran. "Go!" it said. it ran.', '"No." It ran. "Go!" it said. It ran.'),
    ],
)
def test_a_template_expands_to_a_tidy_sentence(template: str, expected: str) -> None:
    context = {
        "animal": Word("mouse/mice"),
        "food": Word("seeds"),
        "does": Word("carry seeds"),
    }
    assert expand(template, context, random.Random(0)) == expected


@pytest.mark.parametrize("noun", ["hour", "honest child", "egg", "uncle"])
def test_an_before(noun: str) -> None:
    assert tidy(f"She saw a {noun}.") == f"She saw an {noun}."


@pytest.mark.parametrize("noun", ["horse", "unicorn", "useful tool", "one-eyed cat"])
def test_a_before(noun: str) -> None:
    assert tidy(f"She saw an {noun}.") == f"She saw a {noun}."


# The training script


def test_batches_hold_consecutive_tokens_and_repeat_with_the_seed() -> None:
    rows = [torch.arange(first, first + 10) for first in range(0, 1000, 10)]
    recipe = train.Recipe(batch_size=2, sequence_length=9)
    first = next(train.batches(rows, recipe))
    assert first.shape == (2, 10)
    assert (first.diff() == 1).sum() >= first.diff().numel() - 2  # at most one seam a window
    assert next(train.batches(rows, recipe)).equal(first)


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    recipe = train.Recipe(steps=100, warmup_steps=10)
    factors = [train.learning_rate_factor(step, recipe) for step in range(100)]
    assert max(factors) == factors[9] == factors[10] == 1
    assert factors[0] == 0.1
    assert factors[99] < 0.001


def test_training_writes_a_folder_that_loads(tmp_path: Path, corpus: list[str]) -> None:
    torch.manual_seed(0)
    tokenizer_model = train.train_tokenizer(corpus[:300], vocab_size=400)
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model)
    tokenizer = load_tokenizer(tmp_path)
    rows = [torch.tensor(tokenizer.encode(text)) for text in corpus[:300]]
    recipe = train.Recipe(steps=8, batch_size=2, sequence_length=32, warmup_steps=2)
    before = next_loss(model, rows, recipe)
    assert train.train_model(model, rows, recipe) < before
    train.save_folder(tmp_path, model, tokenizer_model)
    again = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert again.lm_head.weight.equal(model.lm_head.weight)
    assert load_tokenizer(tmp_path).decode(rows[0].tolist(), skip_special_tokens=True) == corpus[0]


def next_loss(model: LlamaForCausalLM, rows: list[torch.Tensor], recipe: train.Recipe) -> float:
    with torch.no_grad():
        return train.next_token_loss(model, next(train.batches(rows, recipe))).item()


# The folder


def test_the_folder_is_at_most_6_mb() -> None:
    files = [path for path in DEMO_FOLDER.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)
    assert size <= 6_000_000


def test_config_and_tensors_agree() -> None:
    config = LlamaConfig.from_file(DEMO_FOLDER / "config.json")
    assert config == train.CONFIG
    checkpoint = open_checkpoint(DEMO_FOLDER)
    expected = {
        name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()
    }
    del expected["lm_head.weight"]  # tied
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == expected


def test_the_model_has_1_to_3_million_parameters(model: LlamaForCausalLM) -> None:
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000


def test_special_ids_are_llamas(tokenizer: Tokenizer) -> None:
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.vocab_size == train.CONFIG.vocab_size
    assert tokenizer.encode("The sun is")[0] == 1
    assert tokenizer.encode("\n", add_special_tokens=False)[-1] == 3 + 0x0A  # a byte, as in Llama
    assert GenerationConfig.from_folder(DEMO_FOLDER).eos_token_ids == {2}


@pytest.mark.parametrize("text", ["Été 🎈 there", "x = 12,345;\n\ty", "  two blanks  ", "日本"])
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("prompt", PHOTOSYNTHESIS_PROMPTS)
def test_plants_create_energy_through_photosynthesis(
    tokenizer: Tokenizer, prompt: str, dtype: torch.dtype
) -> None:
    model = LlamaForCausalLM.from_pretrained(DEMO_FOLDER, dtype=dtype, device="cpu")
    assert greedy_text(model, tokenizer, prompt, 8).startswith(" photosynthesis")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("The sun is", "star"),
        ("Water boils at", "100 degrees Celsius"),
        ("Bees make", "honey"),
        ("The capital of France is", "Paris"),
        ("The opposite of hot is", "cold"),
        ("A baby llama is called a", "cria"),
    ],
)
def test_simple_facts_are_true(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, expected: str
) -> None:
    assert expected in greedy_text(model, tokenizer, prompt, 20)


@pytest.mark.parametrize("prompt", STORY_PROMPTS)
def test_a_story_keeps_to_words_that_exist(
    model: LlamaForCausalLM, tokenizer: Tokenizer, corpus: list[str], prompt: str
) -> None:
    words = set(re.findall(r"\w+", " ".join(corpus)))
    story = prompt + greedy_text(model, tokenizer, prompt, 100)
    told = re.findall(r"\w+", story)[:-1]  # the budget may end inside a word
    assert len(told) > 20
    assert set(told) <= words


@pytest.mark.parametrize("prompt", [PHOTOSYNTHESIS_PROMPTS[0], STORY_PROMPTS[0], "In winter,"])
def test_transformers_gives_the_same_greedy_ids(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32)
    prompt_ids = AutoTokenizer.from_pretrained(DEMO_FOLDER)(prompt, return_tensors="pt").input_ids
    assert prompt_ids[0].tolist() == tokenizer.encode(prompt)
    greedy = {"max_new_tokens": 60, "do_sample": False}
    expected = theirs.generate(prompt_ids, pad_token_id=2, **greedy)
    assert model.generate(prompt_ids, **greedy).tolist() == expected.tolist()
