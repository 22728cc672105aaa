"""Whether what was seen of a call tells where its images are."""

from torch import Tensor

from vtc.calls.composite import features_method
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
