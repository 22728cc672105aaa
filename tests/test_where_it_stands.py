"""What a selector keeps of a picture does not hang on where the picture stands: in a row, in a batch, in a chat."""

import pytest
import torch
from contract import EVERY, METHODS, greedy, model_of, spec_of
from releases import HERE
from tiny_base import SQUARE, Row

import vtc
from vtc.calls.outputs import Output
from vtc.method.registry import method_class

pytestmark = pytest.mark.usefixtures("no_grad")
CACHE = "cache" if HERE.release[:2] >= (5, 24) else "past_key_values"
#: `recoverable` and `trim` read the question behind the picture, which is another one there.
ASKING = ("recoverable", "trim")
PLACED = [name for name in METHODS if method_class(name).kind == "selector" and name not in ASKING]


def pieces(family, model):
    """A prompt with two pictures of one size, and the same in two: the first picture's, the second's."""
    both = EVERY[family].inputs(model, [Row((SQUARE, SQUARE), 4)])
    ids = both["input_ids"]
    shown = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
    end = int(shown[len(shown) // 2 - 1]) + 1  # behind the first picture's last placeholder
    parts = zip((ids[:, :end], ids[:, end:]), both["pixel_values"].chunk(2))
    return both, [
        {"input_ids": part, "attention_mask": torch.ones_like(part), "pixel_values": pixels} for part, pixels in parts
    ]


def kept(model):
    return [image.kept(0).tolist() for image in vtc.trace(model).images]


@pytest.mark.parametrize("family", ["llava", "internvl"])
@pytest.mark.parametrize("name", [*PLACED, "random:keep=3,seed=7", "tokencorr:keep=0.5,sample=True"])
def test_a_picture_keeps_the_same_wherever_it_stands(family, name):
    spec = name if ":" in name else spec_of(name, family)
    model = model_of(family)
    both, (first, second) = pieces(family, model)
    with vtc.patched(model, spec):
        model(**both)
        in_one = kept(model)
        cache = Output(model(**first, use_cache=True)).cache
        in_turns = kept(model)
        model(**second | {"attention_mask": both["attention_mask"]}, **{CACHE: cache})
        in_turns += kept(model)
        model(**second)
        alone = kept(model)
    assert len(in_one) == 2 and in_turns == in_one and alone == in_one[1:]


def test_two_turns_of_generate_are_one_prompt_with_both():
    """Under `random`, whose draw once counted the pictures of a row."""
    model = model_of("llava")
    both, (first, second) = pieces("llava", model)
    with vtc.patched(model, "random:keep=0.5"):
        model(**both)
        wanted = kept(model)
        said = greedy(model, first, 2, return_dict_in_generate=True)
        ids = torch.cat([said.sequences, second["input_ids"]], dim=1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": second["pixel_values"]}
        greedy(model, again, 2, **{CACHE: Output(said).cache})
        assert kept(model) == wanted[1:] == wanted[:1]
