"""Figures of a profile as text: milliseconds, megabytes, shares, bars."""

from __future__ import annotations

import math
from collections.abc import Sequence

BAR = 10  # characters of a bar of 100 %


def ms(value: float) -> str:
    """Milliseconds with about three significant digits, down to a tenth of a microsecond."""
    if value >= 99.95:
        return f"{value:,.0f}"
    digits = 1 if value >= 9.995 else 2 if value >= 0.0995 else 3 if value >= 0.00995 or not value else 4
    return f"{value:.{digits}f}"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if 0 < value < 1e-4:
        return f"{value:.{2 - math.floor(math.log10(value))}f}"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def megabytes(size: float) -> str:
    """Bytes as megabytes (10^6 bytes) with three significant digits."""
    return number(size / 1e6)


def memory_difference(size: float) -> str:
    """A difference of bytes in megabytes, with its sign; nothing where there is none."""
    return f"{'-' if size < 0 else '+'}{megabytes(abs(size))}" if size else ""


def percent(share: float, digits: int = 1) -> str:
    """A fraction of one in percent."""
    return f"{100 * share:.{digits}f} %"


def signed(value: float) -> str:
    """Milliseconds with their sign."""
    return f"{'-' if value < 0 else '+'}{ms(abs(value))}"


def interval(bounds: Sequence[float] | None) -> str:
    """A confidence interval, milliseconds."""
    return "" if bounds is None else f"{signed(bounds[0])} to {signed(bounds[1])}"


def bar(share: float, width: int = BAR) -> str:
    """A bar in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def kernel_label(name: str) -> str:
    """A kernel's name without what hardly tells it apart: the type of its result, PyTorch's own namespaces, its
    arguments."""
    short = name.removeprefix("void ")
    for noise in ("(anonymous namespace)::", "at::native::"):
        short = short.replace(noise, "")
    depth = 0  # of the angle brackets around template arguments
    for i, letter in enumerate(short):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and i and short[i - 1] != " ":
            return short[:i]
    return short


def shorten(name: str, width: int) -> str:
    """A long kernel's name with its middle left out."""
    return name if len(name) <= width else f"{name[: width * 2 // 3]}…{name[-(width // 3 - 1) :]}"
