"""All readers of golden files: which one a case is for, and how many cases of each file were compared."""

from collections import Counter

import golden_holitom
import golden_image
import golden_inner
import golden_inner_more
import golden_merging
import golden_merging_more
import golden_pixelprune
import golden_prunes
import golden_reducers
import golden_segments
import golden_selectors
import golden_ssm
import golden_video_e2e
import golden_video_merging
import golden_video_picks
from golden_cases import Case, Form, UnknownForm

MODULES = (
    golden_image, golden_video_e2e, golden_video_picks, golden_selectors, golden_prunes, golden_inner,
    golden_inner_more, golden_holitom, golden_ssm, golden_reducers, golden_merging, golden_merging_more,
    golden_pixelprune, golden_video_merging, golden_segments,
)  # fmt: skip
FORMS: list[Form] = [form for module in MODULES for form in module.CHECKS]


def form_of(case: Case) -> Form:
    """The form that a case has.

    Raises:
        UnknownForm: no method of this release has a reader for it, or it has tensors that the reader does not know.
    """
    for form in FORMS:
        if form.applies(case):
            if strangers := form.strangers(case):
                raise UnknownForm(f"{case}: {form.check.__name__} does not know {', '.join(strangers)}")
            return form
    names = ", ".join(sorted(case.tensors)) or "a case without tensors"
    raise UnknownForm(f"{case}: no method of this release has a reader for {names}")


def compare(case: Case, counts: Counter[str] | None = None) -> None:
    """Compare a case with the method that it is of, and count it."""
    form_of(case).check(case)
    if counts is not None:
        counts[case.file.name] += 1
