"""Pictures of what was kept where compression changed whether an answer is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from vtc.eval.models import Loaded
    from vtc.eval.results.records import SampleRecord
    from vtc.eval.tasks.task import Shown
    from vtc.tracing import Trace

#: Of answers that became wrong, and of such that became right, as many are drawn for each setting, by each process.
MOST = 3


class FlipPictures:
    """Draws into the folder `flips` of a run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self._folder = folder / "flips"
        self._drawn: Counter[tuple[str | None, bool | None]] = Counter()

    def draw(
        self,
        name: str,
        without: SampleRecord,
        record: SampleRecord,
        loaded: Loaded,
        shown: Sequence[Shown],
        text: str,
        trace: Trace,
        row: int,
    ) -> str | None:
        """The name under which an answer's picture is, or would be if there were not enough already; None: no flip.

        A picture that can't be drawn or written is left out: nothing depends on it.

        Args:
            name: of the picture's file.
            without: the sample under "none".
            record: the sample under the setting.
            loaded: the model.
            shown: what was asked about; the first of it is drawn.
            text: what was asked.
            trace: of the setting, for the whole batch.
            row: of the sample in the batch.
        """
        if record["correct"] == without["correct"] or not shown:
            return None
        kind = record["setting"], record["correct"]
        if self._drawn[kind] < MOST:
            self._drawn[kind] += 1
            try:
                self._folder.mkdir(exist_ok=True)
                _drawing(loaded, shown, text, trace, row).save(self._folder / name, quality=85)
            except (OSError, ValueError, IndexError):
                return name
        return name


def _drawing(loaded: Loaded, shown: Sequence[Shown], text: str, trace: Trace, row: int) -> Image.Image:
    from vtc.eval.media.contact_sheet import draw_video, sheet
    from vtc.eval.media.images import as_video
    from vtc.eval.media.picture import draw_kept, seen_by_model, view_of_picture
    from vtc.eval.media.video import Video

    traces = [image for image in trace.images if image.row == row]
    if not isinstance(shown[0], Image.Image):
        video = shown[0] if isinstance(shown[0], Video) else as_video(shown[0])
        return sheet(draw_video(video, loaded.inputs([shown], [text]), loaded.processor, traces))
    alone = len(shown) == 1
    crops = seen_by_model(shown[0], loaded.inputs([shown], [text]) if alone else {}, loaded.processor)
    return draw_kept(view_of_picture(crops, traces[0]))
