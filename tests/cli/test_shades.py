"""A sparkline and a shaded confusion matrix, with blocks and colours and without."""

from __future__ import annotations

import io

import pytest
from helpers import drawn
from rich.console import Console

from fastcifar.cli.display.confusion import Confused, most_confused
from fastcifar.cli.display.shades import ShadedConfusion, sparkline

MATRIX = [[90, 10, 0], [1, 99, 0], [40, 0, 60]]
CLASSES = ["cat", "dog", "[red]ship"]


def test_a_sparkline_goes_from_the_lowest_to_the_highest_block() -> None:
    assert sparkline(range(8), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, 0, 7], 8, ascii_only=True) == "#_#"
    assert sparkline([2.0], 8) == "▁" and sparkline([3, 3, 3], 8) == "▁▁▁"


def test_many_values_are_averaged_in_equal_shares() -> None:
    assert sparkline([0, 2, 7, 9, 14, 16], 3) == sparkline([1, 8, 15], 3)
    assert len(sparkline(range(1000), 40)) == 40


def test_the_pairs_confused_most() -> None:
    expected = [Confused("[red]ship", "cat", 40, 0.4), Confused("cat", "dog", 10, 0.1), Confused("dog", "cat", 1, 0.01)]
    assert most_confused(MATRIX, CLASSES) == expected and most_confused(MATRIX, CLASSES, 1) == expected[:1]
    assert most_confused([[3, 0], [0, 0]], ["a", "b"]) == []


def test_mistakes_are_shaded_where_there_are_no_colours() -> None:
    lines = drawn(ShadedConfusion(MATRIX, CLASSES)).splitlines()
    assert [line.split() for line in lines[3:6]] == [
        ["0", "cat", "90", "10░", "·"],
        ["1", "dog", "1", "99", "·"],
        ["2", "[red]ship", "40█", "·", "60"],
    ]


def test_an_output_of_ascii_alone_gets_ascii_shades() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    Console(file=file, width=60, highlight=False).print(ShadedConfusion(MATRIX, CLASSES))
    file.seek(0)
    text = file.read()
    assert "40#" in text and "10." in text and "90 " in text


def test_a_terminal_with_colours_gets_backgrounds() -> None:
    console = Console(file=io.StringIO(), width=60, color_system="truecolor", force_terminal=True)
    console.print(ShadedConfusion(MATRIX, CLASSES))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "48;2;213;94;0m40" in text, "the worst mistake has the full colour"
    assert "48;2;53;23;0m10" in text and "48;2;0;102;160m90" in text
    assert "█" not in text


@pytest.mark.parametrize("classes", [20, 21])
def test_many_classes_are_listed_by_their_worst_pairs(classes: int) -> None:
    matrix = [[5 if i == j else int(j == i + 1) for j in range(classes)] for i in range(classes)]
    lines = drawn(ShadedConfusion(matrix, [f"class{i}" for i in range(classes)]), width=200).splitlines()
    listed = "taken for" in lines[1]
    assert listed == (classes > 20)
    assert len(lines) == (3 + 15 + 1 if listed else 3 + 20 + 1)


@pytest.mark.parametrize(("width", "listed"), [(80, False), (28, False), (27, True)])
def test_a_matrix_that_is_too_wide_is_listed_by_its_worst_pairs(width: int, listed: bool) -> None:
    assert ("share" in drawn(ShadedConfusion(MATRIX, CLASSES), width=width)) == listed
