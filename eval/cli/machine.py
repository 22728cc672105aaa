"""What --device and --threads ask for. Needs torch alone, as a base installation has it."""

import torch

from vtc.eval.cli.arguments import EMBEDDED
from vtc.eval.cli.errors import InputError


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or have.

    Raises:
        InputError: names it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"argument --device: {device!r} can't be used ({reason}); give cpu, or cuda where there is one"
        ) from None


def set_threads(name: str, threads: int | None) -> int:
    """Set torch's CPU threads, one by default for the embedded model, which is too small for more; returns them."""
    if threads is None and name == EMBEDDED:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
