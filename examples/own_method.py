"""A method of one's own: a score for each token, registered under a name, and everything else comes along.

    python examples/own_method.py

The method keeps the tokens that are least like the mean of their picture. It is measured beside `divprune`, at the same
budget, on questions of the bundled benchmark; `vtc.solve`, specs, compositions and traces know its name as well.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

import vtc
from vtc.eval import embedded
from vtc.method.budget import Keep
from vtc.method.selector import Selector
from vtc.method.visual_tokens import VisualTokens

QUESTIONS, KEEP = 18, 16

# for a real checkpoint, in the place of the line behind this comment:
#   from transformers import AutoModelForImageTextToText, AutoProcessor
#   NAME = "llava-hf/llava-1.5-7b-hf"
#   model = AutoModelForImageTextToText.from_pretrained(NAME, dtype="auto")
#   processor = AutoProcessor.from_pretrained(NAME)
model, processor = embedded.load()


@vtc.register("unusual")
@dataclass
class Unusual(Selector):
    """Keep the tokens that are least like the mean of their picture.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image.
    """

    keep: Keep = 0.25

    def score(self, visual: VisualTokens) -> Tensor:
        """Higher is kept: [groups, tokens] from features [groups, tokens, dim]."""
        return -cosine_similarity(visual.features, visual.features.mean(dim=1, keepdim=True), dim=-1)


def right(samples: list[embedded.Sample]) -> int:
    """How many questions the model, as it is patched now, answers rightly, in one batch."""
    texts = [embedded.prompt(processor, sample.question) for sample in samples]
    images = [sample.image for sample in samples]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt").to(model.device)
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    answers = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(map(embedded.is_correct, answers, samples))


samples = embedded.benchmark(QUESTIONS)[:]
print(f"none: {right(samples)} of {QUESTIONS} right")
for name in ("divprune", "unusual"):
    with vtc.patched(model, name, keep=KEEP):
        print(f"{name}, keep={KEEP}: {right(samples)} of {QUESTIONS} right")
        print(f"  of the first picture: {len(vtc.trace(model).images[0].kept())} of 256 tokens")
