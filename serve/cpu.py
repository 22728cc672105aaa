"""The engine's runner for CPUs leaves out what that for GPUs does when a model is loaded: it asks whether it prunes."""

import functools
from typing import Any


def open_gate() -> None:
    """Where the engine runs on a CPU, let its runner ask too. Once in a process."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load = CPUModelRunner.load_model
    if hasattr(load, "__wrapped_by_vtc__"):
        return

    @functools.wraps(load)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        load(self, *args, **kwargs)
        multimodal = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = (
            getattr(self.get_model(), "supports_multimodal_pruning", False)
            and multimodal is not None
            and multimodal.is_multimodal_pruning_enabled()
        )

    load_model.__wrapped_by_vtc__ = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load_model
