"""Other files of the form of the golden ones, made from them by changes whose result is known without any method."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from golden_cases import Case, discovered
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

#: (name of a tensor, the tensor) -> what is stored in its place; None: nothing.
Change = Callable[[str, Tensor], Tensor | None]


def rewritten(
    source: Path,
    folder: Path,
    change: Change = lambda _, tensor: tensor,
    infos: Callable[[Any], Any] = lambda infos: infos,
) -> Path:
    """The file again, with each tensor and what the metadata says of the cases changed."""
    with safe_open(source, "pt") as opened:
        metadata = dict(opened.metadata() or {})
        tensors = {key: change(key, opened.get_tensor(key)) for key in opened.keys()}  # noqa: SIM118 (no dict)
    if "cases" in metadata:
        metadata["cases"] = json.dumps(infos(json.loads(metadata["cases"])))
    return write(folder / source.name, {key: tensor for key, tensor in tensors.items() if tensor is not None}, metadata)


def write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, file, metadata)
    return file


def cases_of(file: Path) -> list[Case]:
    """The cases of a file that stands alone in its folder."""
    return [param.values[0] for param in discovered(file.parent)]


# ---------------------------------------------------------------- the same numbers, stored otherwise


def whole_as_real(_: str, tensor: Tensor) -> Tensor:
    """Counts, indices and masks as reals: all of these are exact."""
    return tensor if tensor.is_floating_point() else tensor.float()


def narrow(_: str, tensor: Tensor) -> Tensor:
    """Indices of 32 bits, masks as integers, and reals of 64."""
    return tensor.double() if tensor.is_floating_point() else tensor.int()


def real_as_whole(_: str, tensor: Tensor) -> Tensor:
    """Reals that are whole numbers as integers, as a writer stores a ratio of 1 or a size of 3."""
    if (
        tensor.is_floating_point()
        and tensor.numel()
        and tensor.isfinite().all()
        and torch.equal(tensor, tensor.round())
    ):
        return tensor.long()
    return tensor


def as_texts(value: Any) -> Any:
    """Numbers of the metadata as texts, whole ones as "3.0"; truth and text stay."""
    return _each(value, lambda number: str(float(number)))


def as_reals(value: Any) -> Any:
    """Whole numbers of the metadata as reals."""
    return _each(value, float)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _each(entry, change) for key, entry in value.items()}
    if isinstance(value, list):
        return [_each(entry, change) for entry in value]
    return change(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


# ---------------------------------------------------------------- the same decoder, larger


def same_decoder_larger(source: Path, folder: Path, wider: int) -> Path:
    """Every decoder of the file with each head twice, `wider` channels of zeros more and a layer that adds nothing.

    Two equal heads give what one gave, with half the weight each behind them; heads are then no longer as wide as the
    width divided by their number. Zeros change no norm where its epsilon and weight take their share; nor a cosine.
    """
    groups, hidden = {}, 0
    with safe_open(source, "pt") as opened:
        infos = json.loads(opened.metadata()["cases"])
        for name in {key.split("/")[0] for key in opened.keys() if key.startswith("weights")}:  # noqa: SIM118
            query, key = (opened.get_tensor(f"{name}/layers.0.self_attn.{part}_proj.weight") for part in "qk")
            heads, hidden = int(infos[name]["heads"]), query.shape[1]
            groups[name] = len(key) * heads // len(query)
    share = hidden / (hidden + wider)
    depth = max(int(info["layers"]) for info in infos.values() if "layers" in info)

    def change(key: str, tensor: Tensor) -> Tensor:
        name, _, rest = key.partition("/")
        if name in groups:
            return _larger(rest, tensor, hidden, wider, share, groups[name])
        if rest == "cache_lens":
            return torch.cat([tensor, tensor[-1:]])
        of_hidden = tensor.is_floating_point() and tensor.dim() > 1 and tensor.shape[-1] == hidden
        return _padded(tensor, -1, wider) if of_hidden else tensor

    def say(infos: dict[str, Any]) -> dict[str, Any]:
        for name in groups:
            info = infos[name]
            info.update(heads=str(2 * int(info["heads"])), rms_eps=str(info["rms_eps"] * share), layers=depth + 1)
        return infos

    made = rewritten(source, folder, change, say)
    with safe_open(made, "pt") as opened:
        metadata = opened.metadata()
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no dict)
    for key in list(tensors):
        if f"layers.{depth - 1}." in key and key.startswith("weights"):
            silent = key.endswith(("o_proj.weight", "down_proj.weight"))
            value = torch.zeros_like(tensors[key]) if silent else tensors[key].clone()
            tensors[key.replace(f"layers.{depth - 1}.", f"layers.{depth}.")] = value
    return write(made, tensors, metadata)


def _larger(name: str, tensor: Tensor, hidden: int, wider: int, share: float, groups: int) -> Tensor:
    if "norm" in name:
        return _padded(tensor, 0, wider) * share**0.5
    if "_proj.bias" in name:
        return _twice(tensor, groups, 0)
    if "o_proj" in name:
        return _padded(_twice(tensor, groups, 1) / 2, 0, wider)
    if "self_attn" in name:
        tensor = _twice(tensor, groups, 0)
    return _padded(tensor, 0 if "down_proj" in name else 1, wider)


def _twice(tensor: Tensor, groups: int, dim: int) -> Tensor:
    """Each group of heads along `dim`, twice behind each other: so that copies of queries find copies of keys."""
    grouped = tensor.unflatten(dim, (groups, -1))
    return grouped.repeat_interleave(2, dim=dim).flatten(dim, dim + 1)


def _padded(tensor: Tensor, dim: int, more: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = more
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)
