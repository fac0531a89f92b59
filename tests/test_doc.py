"""Pages that are generated from the code."""

import importlib.util
from pathlib import Path

DOC = Path(__file__).parents[1] / "doc"


def test_the_table_of_operations_is_what_the_registry_holds():
    spec = importlib.util.spec_from_file_location("make_operations", DOC / "make_operations.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written, made = (text.partition("## All others")[0] for text in (generator.PAGE.read_text(), generator.page()))
    assert written == made, "doc/operations.md is stale: run `python doc/make_operations.py`"
