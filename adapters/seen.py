"""Whether what was seen of a call tells where its images are, and which of the encoded ones."""

from collections import Counter

import torch
from torch import Tensor

from vtc.calls.composite import features_method
from vtc.model.layout import VisualInput
from vtc.tower.features import Features
from vtc.tower.prompt import Prompt


def check_seen(family: str, prompt: Prompt, kind: str, mask: Tensor, shape: tuple[int, int], by_runs: bool) -> None:
    """Refuse placeholders that are not those of this call, or whose features were made where nobody saw it.

    Args:
        family: the model's.
        prompt: what was seen of the call.
        kind: of the placeholders.
        mask: BoolTensor [B, L] on the CPU: where they are.
        shape: of the sequence that the decoder is entered with.
        by_runs: whether images are told by their runs of placeholders, and no features need to be seen.

    Raises:
        RuntimeError: they are.
    """
    if tuple(mask.shape) != shape:
        raise RuntimeError(
            f"vtc: placeholders were found in a sequence of shape {tuple(mask.shape)}, and the decoder of "
            f"{family} was entered with one of {shape}; run `vtc doctor`, or call vtc.unpatch"
        )
    asked = prompt.asked
    if asked is not None and asked.shape == mask.shape and asked.any() and mask.any() and not (asked & mask).any():
        raise RuntimeError(
            f"vtc: {family} put {kind} features where its ids have no placeholder, so what was found is not "
            "what vtc takes it for; run `vtc doctor`, or call vtc.unpatch"
        )
    if kind not in prompt.features and not by_runs and mask.any():
        raise RuntimeError(
            f"vtc: {family} has placeholders for {kind} features, and vtc did not see how these were made "
            f"(by {features_method(kind)}), so where one {kind} ends is not known; run `vtc doctor`, or call "
            "vtc.unpatch"
        )


def origins(family: str, images: list[VisualInput], features: Features) -> list[int]:
    """For each image of a batch, the number of the encoded image that it is.

    Args:
        family: the model's.
        images: found in the sequence.
        features: what they were made with, known again or made for this call.

    Raises:
        RuntimeError: features were given in another order than they were made in, in parts of images.
    """
    if features.shown is not None and len(features.shown) == len(images):
        return list(features.shown)
    found = _by_rows(images, features.repeats)
    if features.shown is not None and images and not _as_made(images, found, features):
        raise RuntimeError(
            f"vtc: {family} was given the features of {features.kind}s in parts, and in another order than they were "
            "made in, so which is whose is not known; give them as they were made, or give the pixels"
        )
    return found


def _by_rows(images: list[VisualInput], repeats: int) -> list[int]:
    """Which of the encoded images each is, told by the rows of the batch.

    `generate` repeats each row with its images for beams and several returned sequences; every group of `repeats` rows
    then shows the same images.
    """
    result: list[int] = []
    base = shown = group = 0
    before: Counter[int] = Counter()  # row -> images of it
    for image in images:
        if image.row // repeats != group:
            base, shown, group = base + shown, 0, image.row // repeats
        result.append(base + before[image.row])
        before[image.row] += 1
        shown = max(shown, before[image.row])
    return result


def _as_made(images: list[VisualInput], found: list[int], features: Features) -> bool:
    """Whether the parts of images (tiles, rows of the batch) that were given make up the images `found`, in order."""
    assert features.shown is not None
    if set(features.shown) != set(range(features.images)):
        return False
    made = _places([(part, size) for part, size in zip(features.shown, features.sizes)])
    return torch.equal(made, _places([(origin, len(image)) for origin, image in zip(found, images)]))


def _places(spans: list[tuple[int, int]]) -> Tensor:
    """LongTensor [N]: the tokens of spans (number, tokens), counted through all of them by number."""
    lengths = dict(spans)
    starts = {number: sum(lengths[before] for before in lengths if before < number) for number in lengths}
    return torch.cat([torch.arange(starts[number], starts[number] + length) for number, length in spans])
