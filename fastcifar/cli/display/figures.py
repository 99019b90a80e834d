"""Figures of a profile as text: milliseconds, megabytes, shares, bars."""

from __future__ import annotations

from collections.abc import Sequence

BAR = 10  # characters of a bar of 100 %


def ms(value: float) -> str:
    """Milliseconds with about three significant digits."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.0995 else f"{value:.3f}"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
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


def shorten(name: str, width: int) -> str:
    """A long kernel's name with its middle left out."""
    return name if len(name) <= width else f"{name[: width * 2 // 3]}…{name[-(width // 3 - 1) :]}"
