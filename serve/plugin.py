"""What the engine calls in each of its processes (entry point `vllm.general_plugins`). Nothing heavy is imported here."""

from typing import Any

from vtc.serve.architectures import ARCHITECTURES, PREFIX
from vtc.serve.setting import SPEC
from vtc.serve.versions import HOOKS, differing, unusable, warn


def register() -> None:
    """Let a config that has a spec (`--hf-overrides '{"vtc": "divprune:keep=0.25"}'`) run the pruning classes.

    The engine's registry is asked for a class whenever a model is looked up; a config without a spec gets the engine's
    own, as if nothing were installed. May be called again.
    """
    from vllm import ModelRegistry

    if hasattr(ModelRegistry, "_vtc"):
        return
    if told := differing(HOOKS["vllm.model_executor.models.registry:_ModelRegistry"], type(ModelRegistry)):
        warn(told)
        return
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(PREFIX + architecture, f"vtc.serve.models:{PREFIX}{architecture}")
    inspect, resolve = ModelRegistry.inspect_model_cls, ModelRegistry.resolve_model_cls
    ModelRegistry.inspect_model_cls = _looking(inspect, refuses=True)  # called once for what is to be served
    ModelRegistry.resolve_model_cls = _looking(resolve, refuses=False)  # for language models in it too
    ModelRegistry._vtc = True


def _looking(look_up: Any, refuses: bool) -> Any:
    """A look-up of the registry that minds the spec."""

    def asked(architectures: str | list[str], model_config: Any) -> Any:
        return look_up(_ours(architectures, model_config, refuses), model_config)

    return asked


def _ours(architectures: str | list[str], model_config: Any, refuses: bool) -> str | list[str]:
    """Our names in place of the engine's where the config has a spec.

    Raises:
        ValueError: it has one, and this is no model that can be served so.
    """
    config = model_config.hf_config
    spec = getattr(config, SPEC, None)
    if spec is None:
        return architectures
    names = [architectures] if isinstance(architectures, str) else list(architectures)
    names = [name.removeprefix(PREFIX) for name in names]
    known = [name for name in names if name in ARCHITECTURES]
    if not known and not refuses:
        return architectures
    if not known:
        raise ValueError(
            f"{SPEC}={spec!r}: {', '.join(names)} can't be served with pruning; these can: {', '.join(ARCHITECTURES)}"
        )
    if told := unusable(known[0]):
        warn(told)
        return names
    from vtc.serve.served import served

    served(config)  # refused now, before anything is loaded
    config.architectures = [PREFIX + known[0]]  # by which the engine remembers classes
    return config.architectures
