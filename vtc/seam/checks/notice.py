"""Says once what a user should know: that nothing was compressed, or that a prune may choose by the answer."""

import warnings

from vtc.calls.composite import PLACEHOLDERS
from vtc.model.layout import Layout
from vtc.seam.composition import Composition
from vtc.seam.leaving.report import trace_of_untouched
from vtc.tower.prompt import Prompt
from vtc.tracing import Trace

#: How each message begins.
NOTHING = "vtc: nothing was compressed"


def not_found(family: str) -> str:
    """Why a call runs uncompressed whose pictures were not found in its sequence."""
    return f"pictures were given, and vtc did not see where {family} puts them ({PLACEHOLDERS} found none)"


def merged_outside(prompt: Prompt, layout: Layout) -> str | None:
    """Why nothing is compressed in a call that brings embeddings alone; None where it is another one, or a step.

    Args:
        prompt: what was seen of the call.
        layout: of the decoder's.
    """
    if not prompt.open or prompt.shows or prompt.ids is not None or layout.images or layout.shape[1] < 2:
        return None
    return (
        "inputs_embeds came without input_ids, pixels or mm_token_type_ids, so whether and where visual features "
        "were put into them is not known (give the ids and the pixels in their place)"
    )


class Notices:
    """What one patch has said; each reason is given once.

    Args:
        composition: what the patch knows.
    """

    def __init__(self, composition: Composition):
        self.composition = composition
        self._said: set[str] = set()

    def unlabelled(self) -> None:
        """Warn that a prune chooses in training, and may do it by the answer."""
        prune = self.composition.prunes[0].name
        if prune not in self._said:
            self._said.add(prune)
            warnings.warn(
                f"vtc: {prune} chooses by the last token of each row, for a call in training has no labels that tell "
                "where the prompt ends (a trainer with a loss of its own, or label smoothing, takes them out); wrap it "
                "in vtc.prompt_length(model, length)",
                UserWarning,
                stacklevel=2,
            )

    def unseen(self, prompt: Prompt, shape: tuple[int, int], why: str) -> Trace:
        """Warn that a call with pictures ran uncompressed.

        Args:
            prompt: what was seen of the call.
            shape: (batch, length) of its tokens.
            why: the reason, a clause.

        Returns:
            Its trace.

        Raises:
            RuntimeError: its vision tower ran shortened, so that what it computed is wrong.
        """
        made = (*prompt.features.values(), *prompt.earlier.values())
        if any(features.tower is not None and features.tower.moved for features in made):
            raise RuntimeError(
                f"vtc: {self.composition.parts.family}'s vision tower was shortened, and {why}, so the decoder got "
                "features with holes in them; run `vtc doctor`, or call vtc.unpatch"
            )
        if why not in self._said:
            self._said.add(why)
            warnings.warn(f"{NOTHING}, because {why}; run `vtc doctor` to see what fits", UserWarning, stacklevel=2)
        given = None if prompt.asked is None else prompt.asked.sum(dim=1).tolist()
        return trace_of_untouched(self.composition, prompt, Layout(shape), None, why, given)
