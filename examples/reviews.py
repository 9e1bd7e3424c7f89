"""Labelled sentences: 10,605 snippets of movie reviews, each rated by twenty people.

Hutto and Gilbert, VADER (ICWSM 2014), who cut the reviews of Pang and Lee (2004) into sentences and
had them rated from -4 to 4; MIT licence. They lie in an archive within the PyPI source archive of
`vaderSentiment`, which is fetched once (see fetch.py). A snippet is positive if its mean rating is
above zero, negative if it is below; the 37 that are at zero are left out.
"""

import io
import re
import tarfile
from typing import NamedTuple

import fetch
import numpy as np

SOURCE = "vaderSentiment-3.3.2.tar.gz"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
TEST_PART = 0.2


class Snippet(NamedTuple):
    """One sentence, and whether people found it positive."""

    text: str
    positive: bool


def read_snippets() -> list[Snippet]:
    """Return all snippets with a side, in the order of the file. Raises `fetch.Unavailable`.

    A line of the file is an identifier, the mean rating and the text, with tabs between.
    """
    with tarfile.open(fetch.archive(SOURCE)) as outer:
        inner = outer.extractfile(INNER)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            file = archive.extractfile(TABLE)
            assert file is not None
            lines = file.read().decode().splitlines()
    rows = (line.split("\t") for line in lines if line)
    rated = ((float(rating), text) for _, rating, text in rows)
    return [Snippet(text, rating > 0) for rating, text in rated if rating != 0]


def same(text: str) -> str:
    """What duplicates have in common: their letters and digits, in one case."""
    return re.sub(r"\W+", " ", text).strip().lower()


def split(snippets: list[Snippet], seed: int = 0) -> tuple[list[Snippet], list[Snippet]]:
    """Return shuffled snippets to train and to test on; one fifth is to test on.

    Of snippets that say the same only the first is taken, so that none is in both.
    """
    first: dict[str, Snippet] = {}
    for snippet in snippets:
        first.setdefault(same(snippet.text), snippet)
    once, tests = list(first.values()), round(TEST_PART * len(first))
    shuffled = [once[i] for i in np.random.default_rng(seed).permutation(len(once))]
    return shuffled[tests:], shuffled[:tests]
