"""The corpus of the demo model: true sentences and simple stories, written by this package.

`python -m llamacli.demo.corpus` prints it, one blank line between two documents.
"""

import random
import sys

from llamacli.demo.facts import fact_documents
from llamacli.demo.stories import story_documents

STORIES = 6000
SCENES_PER_TEMPLATE = 60


def documents(seed: int = 0) -> list[str]:
    """All documents, none twice, in random order; the same seed gives the same list."""
    rng = random.Random(seed)
    texts = fact_documents(rng) + story_documents(rng, STORIES, SCENES_PER_TEMPLATE)
    distinct = list(dict.fromkeys(texts))
    rng.shuffle(distinct)
    return distinct


def main() -> None:
    """Print the corpus."""
    sys.stdout.write("\n\n".join(documents()) + "\n")


if __name__ == "__main__":
    main()
