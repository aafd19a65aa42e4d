"""Short stories (a beginning, a plot, an ending) and everyday scenes, with changing casts."""

import random

from llamacli.demo.facts import TABLES, read_lines
from llamacli.demo.templates import Word, expand

MOODS = ["happy", "cheerful", "curious", "full of ideas", "in a good mood"]
PRONOUNS = {
    "girl": ("she", "her", "her"),
    "boy": ("he", "him", "his"),
}  # subject, object, possessive

# After a beginning that starts "One day" or "One morning" the plot must not start so again.
FIRST_DAY = [
    "One day,",
    "One morning,",
    "One {weather} day,",
    "One {weather} morning,",
    "One afternoon,",
]
SAME_DAY = ["After a while,", "That day", "Later that day,", "A little later", "On this day"]


def read_words() -> dict[str, list[Word]]:
    """The word lists by name."""
    words = {}
    for line in read_lines("story_words"):
        name, _, options = line.partition(":")
        words[name] = [Word(option.strip()) for option in options.split("|")]
    return words


def read_sections() -> dict[str, list[str]]:
    """The story parts by section; a part is a paragraph of one or more lines."""
    sections: dict[str, list[str]] = {}
    for block in (TABLES / "story_plots.txt").read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in block.strip().splitlines() if not line.startswith("#")]
        if lines and lines[0].startswith("= "):
            name = lines.pop(0).removeprefix("= ")
            # Beginnings and endings are one a line, a plot is one paragraph.
            sections[name] = lines if name != "plots" else ["\n".join(lines)]
        elif lines:
            sections["plots"].append("\n".join(lines))
    return sections


def cast_context(words: dict[str, list[Word]], rng: random.Random) -> dict[str, str]:
    """A hero, a friend and the things around them: fields that stay the same in one story."""
    hero_sex, friend_sex = rng.choice(["girl", "boy"]), rng.choice(["girl", "boy"])
    hero_name = rng.choice(words[f"{hero_sex}s"])
    friend_name = rng.choice([name for name in words[f"{friend_sex}s"] if name != hero_name])
    are_animals = rng.random() < 0.4
    animals = rng.sample(words["animals"], 3)
    context = {
        "n": hero_name,
        "m": friend_name,
        "kind": animals[0] if are_animals else hero_sex,
        "kind2": animals[1] if are_animals else friend_sex,
        "animal": animals[2],
        "mood": rng.choice(MOODS),
        "family": rng.choice(["mother", "father", "grandmother", "grandfather"]),
    }
    for plural in ["traits", "toys", "colors", "treats", "foods", "places", "homes", "critters",
                   "elders", "neighbors", "weathers", "treasures"]:  # fmt: skip
        context[plural.removesuffix("s")] = rng.choice(words[plural])
    context["at"] = context["place"]  # "in the park"
    context["place"] = "the " + context["at"].partition(" the ")[2]
    context["Neighbor"] = context["neighbor"].capitalize()
    context |= zip(("he", "him", "his"), PRONOUNS[hero_sex], strict=True)
    context |= zip(("he2", "him2", "his2"), PRONOUNS[friend_sex], strict=True)
    return context


def story(words: dict[str, list[Word]], sections: dict[str, list[str]], rng: random.Random) -> str:
    """One story of a new cast."""
    sudden = rng.random() < 0.4
    context = cast_context(words, rng)
    beginning = rng.choice(sections["sudden beginnings" if sudden else "beginnings"])
    days = SAME_DAY if sudden else FIRST_DAY
    context["day"] = expand(rng.choice(days), context, rng)
    plot = rng.choice(sections["plots"])
    between = "\n" if rng.random() < 0.15 else " "  # some stories are told in paragraphs
    parts = [beginning, *plot.splitlines(), rng.choice(sections["endings"])]
    return expand(between.join(parts), context, rng)


def story_documents(rng: random.Random, stories: int, scenes: int) -> list[str]:
    """This many stories, and this many scenes of each template of small talk."""
    words, sections = read_words(), read_sections()
    documents = [story(words, sections, rng) for _ in range(stories)]
    for template in read_lines("small_talk"):
        for _ in range(scenes):
            documents.append(expand(template, cast_context(words, rng), rng))
    return documents
