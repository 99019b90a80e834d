"""The version of this program and of what results depend on."""

from __future__ import annotations

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """What a result depends on besides recipe, data, seed and device."""
    import platform

    import torch

    return {"fastcifar": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
