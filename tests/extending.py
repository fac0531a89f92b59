"""The classes of doc/extending.md, as they stand there, so that page and tests can't part."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[1] / "doc" / "extending.md"

for _example in doctest.DocTestParser().get_examples(PAGE.read_text()):
    if _example.source.startswith(("from ", "import ", "class ")):
        exec(_example.source)
