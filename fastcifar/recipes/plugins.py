"""User-supplied code, named in a recipe by its import path, such as `network.factory = "mine:Net"`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastcifar.errors import UsageError


def import_object(path: str) -> Callable[..., Any]:
    """Import the class or function `module:name`; the working folder is searched too.

    Raises UsageError where there is no such module or name, or where it cannot be called.
    """
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise UsageError(f"'{path}' names no code: the form is module:name, for example mine:Net.")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise UsageError(f"'{path}' cannot be imported: there is no module '{error.name}' here.") from None
    except AttributeError:
        raise UsageError(f"'{path}' cannot be imported: module '{module}' has no '{name}'.") from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UsageError(f"'{path}' is no class or function.")
    return found  # type: ignore[no-any-return]
