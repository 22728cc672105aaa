"""The hooks through which a reducer shortens a vision tower, its projector's work and the sequence."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vtc.refusals import check_tower
from vtc.relayout import Move
from vtc.tower import TowerRun

if TYPE_CHECKING:
    from vtc.seam import Seam


def start(seam: "Seam", hidden: Tensor) -> None:
    """Begin a run through the tower; `hidden` is its first block's input."""
    assert seam.reducer is not None
    encoding, prefix = seam.encoding, int(seam.parts.has_cls)
    check_tower(seam, seam.reducer)
    maps = seam.adapter.patches(encoding, encoding.shape)
    encoding.tower = TowerRun(seam.reducer, seam.reducing_at, maps, hidden, prefix, len(seam.parts.blocks))


def hooks(seam: "Seam", install: Callable[[Any], None]) -> None:
    """Put the hooks of the seam's reducer into the model; each handle goes to `install`."""
    assert seam.reducer is not None
    for index in seam.reducing_at:
        block = seam.parts.blocks[index]
        if seam.reducer.acts == "attention":
            norm, mlp = seam.adapter.second_norm(block), seam.adapter.mlp(block)
            install(norm.register_forward_pre_hook(functools.partial(_before_norm, seam, index), prepend=True))
            install(mlp.register_forward_hook(functools.partial(_after_mlp, seam)))
    for index, block in enumerate(seam.parts.blocks):
        install(block.register_forward_hook(functools.partial(_after_block, seam, index), prepend=True))
    install(seam.adapter.tower.register_forward_hook(functools.partial(_after_tower, seam), prepend=True))
    for merger in seam.adapter.mergers:
        install(merger.register_forward_hook(functools.partial(_after_merger, seam)))
    projector = seam.adapter.projector
    if projector is not None:
        install(projector.register_forward_pre_hook(functools.partial(_before_projector, seam), with_kwargs=True))
        install(projector.register_forward_hook(functools.partial(_after_projector, seam)))


def _running(seam: "Seam") -> TowerRun | None:
    run = seam.encoding.tower
    return run if run is not None and run.active else None


def _before_norm(seam: "Seam", index: int, module: nn.Module, args: tuple) -> Any:
    run = _running(seam)
    if run is None:
        return None
    run.move = run.reduce(index, args[0])
    if run.move is None:
        return None
    run.move.write(args[0])  # the block's residual stream
    seam.encoding.runs[-1].mlp_rows = run.rows()
    return (run.move.rows, *args[1:])


def _after_mlp(seam: "Seam", module: nn.Module, args: tuple, output: Any) -> Any:
    run = _running(seam)
    return run.move.expand(output) if run is not None and run.move is not None else None


def _after_block(seam: "Seam", index: int, module: nn.Module, args: tuple, output: Any) -> Any:
    run = _running(seam)
    if run is None:
        return None
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    move: Move | None = run.move
    if move is not None:  # decided between attention and MLP
        rows, run.move = move.take(hidden), None
    elif index in seam.reducing_at and run.reducer.acts == "block":
        run.mark(hidden)  # whoever collects outputs may have this one
        move = run.reduce(index, hidden)
        rows = move.rows if move is not None else hidden
    else:
        rows = hidden
    run.mark(rows)
    if rows is hidden:
        return None
    return (rows, *output[1:]) if isinstance(output, tuple) else rows


def _after_tower(seam: "Seam", module: nn.Module, args: tuple, output: Any) -> Any:
    run = _running(seam)
    if run is None or not run.moved:
        return None
    if isinstance(output, Tensor):
        return run.restore(output, run.layout)
    last = getattr(output, "last_hidden_state", None)
    if getattr(output, "hidden_states", None) is not None:
        output["hidden_states"] = tuple(
            None if s is None else run.restore(s, run.layout if s is last else None) for s in output.hidden_states
        )
    if last is not None:
        output["last_hidden_state"] = run.restore(last, run.layout)
    return output


def _after_merger(seam: "Seam", module: nn.Module, args: tuple, output: Tensor) -> Any:
    run = _running(seam)
    return run.restore_units(output) if run is not None and run.moved else None


def _before_projector(seam: "Seam", module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    run = _running(seam)
    if run is None or not run.moved or not args or not isinstance(args[0], Tensor) or args[0].dim() != 3:
        return None
    run.gathered = run.survivors(args[0].shape[1]) if len(args[0]) == len(run.layout.index) else None
    if run.gathered is None:
        return None
    run.slots = args[0].shape[:2]
    return (args[0][run.gathered][None], *args[1:]), kwargs


def _after_projector(seam: "Seam", module: nn.Module, args: tuple, output: Any) -> Any:
    run = _running(seam)
    if run is None or run.gathered is None:
        return None
    gathered, run.gathered = run.gathered, None
    return output.new_zeros(*run.slots, output.shape[-1]).index_put(gathered, output[0])
