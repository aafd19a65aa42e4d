"""Text templates of the demo corpus.

A template is plain English with two marks:

- `[red|old|]` is replaced by one of its options, chosen at random; options may nest and be empty;
- `{field}` is replaced by a value of the context; `{field:s}` is its plural, `{field:v}` its form
  after *he* or *she*.

`tidy` then puts the details right that a template cannot know: a or an, blanks, capital letters.
"""

import random
import re
from collections.abc import Mapping

IRREGULAR_VERBS = {"have": "has", "are": "is", "do": "does", "go": "goes", "can": "can"}
# Vowel letters that sound like consonants, and the reverse.
A_WORDS = re.compile(r"(uni|use|usu|eu|one\b|once\b)", re.IGNORECASE)
AN_WORDS = re.compile(r"(hour|honest|[aeiou])", re.IGNORECASE)

INNERMOST_CHOICE = re.compile(r"\[([^\[\]]*)\]")
ARTICLE = re.compile(r"\b([Aa])n? (?=(\w+))")
# After ?" or !" the sentence may go on ("Help!" cried Tom), after ." it is over.
SENTENCE_START = re.compile(r"(^\"?|[.!?] \"?|\.\" |\n\"?)([a-z])")


class Word(str):
    """A table cell; `mouse/mice` gives a singular and an irregular plural."""

    def __format__(self, spec: str) -> str:
        singular, _, plural = self.partition("/")
        if spec == "s":
            return plural or pluralize(singular)
        if spec == "v":
            return third_person(singular)
        return singular


def pluralize(noun: str) -> str:
    """`fox` → `foxes`."""
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def third_person(phrase: str) -> str:
    """`carry water` → `carries water`: only the first word is a verb."""
    verb, blank, rest = phrase.partition(" ")
    return IRREGULAR_VERBS.get(verb, pluralize(verb)) + blank + rest


def expand(template: str, context: Mapping[str, str], rng: random.Random) -> str:
    """One random text of a template.

    Raises: KeyError when the template names a field that the context lacks.
    """
    text = template
    while INNERMOST_CHOICE.search(text):
        text = INNERMOST_CHOICE.sub(lambda choice: rng.choice(choice[1].split("|")), text)
    return tidy(text.format_map(context))


def tidy(text: str) -> str:
    """Put articles, blanks and capital letters right."""
    text = re.sub(r" +", " ", text).strip()
    text = re.sub(r" ([.,!?])", r"\1", text)
    text = ARTICLE.sub(_right_article, text)
    return SENTENCE_START.sub(lambda start: start[1] + start[2].upper(), text)


def _right_article(article: re.Match[str]) -> str:
    vowel = AN_WORDS.match(article[2]) and not A_WORDS.match(article[2])
    return f"{article[1]}{'n' if vowel else ''} "
