"""What the documentation takes from the code is what the code says."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def test_the_rooms_are_those_of_the_tree():
    assert generate.ARCHITECTURE.read_text(encoding="utf-8") == generate.architecture(), "make docs"


def test_the_operators_with_a_gradient_are_those_of_the_table():
    assert generate.GRADIENT_PAGE.read_text(encoding="utf-8") == generate.gradient_page(), "make docs"


def test_the_page_of_solvers_is_what_their_tables_say():
    assert generate.SOLVER_PAGE.read_text(encoding="utf-8") == generate.solver_page(), "make docs"


def test_the_page_of_commands_is_their_help():
    assert generate.CLI_PAGE.read_text(encoding="utf-8") == generate.cli_page(), "make docs"


def test_every_module_says_in_one_line_what_it_is():
    for line in generate.rooms().splitlines()[1:-1]:
        name, *text = line.split()
        assert text, f"{name} has no docstring"
