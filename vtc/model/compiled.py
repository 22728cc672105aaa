"""Code that torch compiled of a model knows the hooks that were there at the time, and no others."""

import sys

import torch


def forget_compiled() -> None:
    """Let torch compile anew, with the hooks that are there now, in the next call of whatever it has compiled.

    By default its guards do not look at hooks (`torch._dynamo.config.skip_nnmodule_hook_guards`), so that a model that
    was compiled before a patch would go on without it, and after `unpatch` with it.
    """
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is not None and getattr(dynamo, "cached_backends", True):  # else nothing was compiled in this process
        torch.compiler.reset()


def exports() -> bool:
    """Whether torch.export runs the model; older releases of torch say so of all that they compile, too."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
