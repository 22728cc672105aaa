"""What a method does at a budget of all tokens but one: next to nothing, or its docstring says that it is otherwise."""

import functools

import pytest
from contract import IN_STEPS, ON_VIDEOS

import vtc
from vtc.eval import embedded
from vtc.method.registry import method_class, shipped

pytestmark = pytest.mark.usefixtures("no_grad")

#: Rules as published whose limit is not the identity; their docstrings say so.
PUBLISHED = {"v2drop", "visionzip"}
#: Those that have no budget in tokens, act on videos alone, or refuse the bundled model.
OTHERS = {"none", "todre_stage2", "frame_stride", "holitom", "pixelprune", "prunevid", "vtw"} | ON_VIDEOS | IN_STEPS
NAMES = sorted({*shipped()} - OTHERS)
PICTURES = 6


@functools.cache
def asked():
    """The bundled model, and a batch of its own benchmark."""
    model, processor = embedded.load()
    samples = embedded.benchmark(PICTURES)
    text = [embedded.prompt(processor, sample.question) for sample in samples]
    images = [sample.image for sample in samples]
    return model, processor(images=images, text=text, padding=True, padding_side="left", return_tensors="pt")


@functools.cache
def untouched():
    model, inputs = asked()
    return model(**inputs).logits[:, -1].log_softmax(-1)


def distance(spec: str) -> float:
    """Mean over pictures of the divergence of the answer's first token from the untouched model's."""
    model, inputs = asked()
    with vtc.patched(model, spec):
        answer = model(**inputs).logits[:, -1].log_softmax(-1)
    there = untouched()
    return float((there.exp() * (there - answer)).sum(-1).mean())


def spec_of(name: str, keep: int) -> str:
    return f"{name}:keep={keep}" if name != "atp" else f"{name}:keep={keep / 256}"


@pytest.mark.parametrize("name", NAMES)
def test_one_token_fewer_changes_little_or_the_docstring_says_so(name):
    near, far = distance(spec_of(name, 255)), distance(spec_of(name, 32))
    if name in PUBLISHED:
        assert "limit is not the identity" in " ".join(str(method_class(name).__doc__).split())
    else:
        assert near < max(0.05 * far, 1e-3)
