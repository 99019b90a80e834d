"""`fastcifar doctor`."""

from __future__ import annotations

from typing import Any

from fastcifar import errors
from fastcifar.cli.options import AsJson, Device, Quiet, document


def doctor(device: Device = None, as_json: AsJson = False, quiet: Quiet = False) -> int:
    """Say whether this machine is fit to train, and what is missing; exits with code 4 where it is not.

    Example: fastcifar doctor --device cpu
    """
    from fastcifar.cli.display.doctor import diagnosis_from_document
    from fastcifar.cli.display.screen import Screen
    from fastcifar.profiling.diagnosis import diagnose

    screen = Screen(as_json, quiet)
    progress = Screen(as_json=True, quiet=quiet)  # on standard error, whatever the result goes to
    diagnosis = diagnose(device, progress.note)
    result: dict[str, Any] = {**document("doctor", diagnosis.device), **diagnosis.document()}
    screen.result(diagnosis_from_document(result), result)
    return errors.OK if diagnosis.fit else errors.MACHINE
