"""Rows that keep different numbers of tokens in a later turn: each as in its own run, or refused before layers run."""

import functools

import pytest
import torch
from contract import EVERY
from families import Row
from releases import HERE, skip_broken
from transformers import DynamicCache

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
CACHE = "cache" if HERE.release[:2] >= (5, 24) else "past_key_values"
TEXT, STEPS = 16, 3
TOWER = (
    "pixel_values",
    "image_sizes",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_grid_thw",
    "image_position_ids",
)


@functools.cache
def built(family, window):
    skip_broken(family, "sdpa")
    return EVERY[family].build(**({} if window is None else dict([window])))


class Two:
    """Text, then a picture in each row with as many tokens of all kinds, then steps."""

    def __init__(self, family, window, sizes):
        self.family, self.model, self.sizes = EVERY[family], built(family, window), sizes
        self.ran, self.held = [], []
        given = self.inputs(range(len(sizes)))
        self.types = {name: value for name, value in given.items() if "type_ids" in name}
        self.ids = given["input_ids"].masked_fill(given["attention_mask"] == 0, 50)  # words in place of padding

    def inputs(self, rows):
        return self.family.inputs(self.model, [Row((self.sizes[row],), 2) for row in rows], padding="right")

    def ask(self, rows):
        """The last logits [calls, B, vocabulary] of a batch of some rows."""
        rows = list(rows)
        text = torch.arange(20, 20 + TEXT).expand(len(rows), -1)
        cache, seen, logits = DynamicCache(config=self.model.config.get_text_config()), 0, []
        pixels = {name: value for name, value in self.inputs(rows).items() if name in TOWER}
        types = {name: value[rows] for name, value in self.types.items()}
        turns = [(text, {name: torch.zeros_like(text) for name in types}), (self.ids[rows], {**pixels, **types})]
        for step in range(STEPS):
            ids = torch.full((len(rows), 1), 40 + step)
            turns.append((ids, {name: torch.zeros_like(ids) for name in types}))
        self.ran.clear()
        self.held.clear()
        for ids, more in turns:
            seen += ids.shape[1]
            if "image_grid_thw" not in self.inputs(rows):  # else the model makes them, if there is no mask
                more["attention_mask"] = torch.ones(len(rows), seen, dtype=torch.long)
                more["position_ids"] = torch.arange(seen - ids.shape[1], seen).expand(len(rows), -1)
            logits.append(self.model(input_ids=ids, **more, **{CACHE: cache}, use_cache=True).logits[:, -1])
            self.ran.append(ids.shape[1])
            self.held.append(cache.layers[2].get_mask_sizes(0)[0])
        return torch.stack(logits)


SLIDING, CHUNKED = ("sliding_window", 12), ("attention_chunk_size", 12)
WIDE = ("sliding_window", 400)
RAGGED = "rows keep different numbers of tokens"

#: (family, window, spec, what is refused: None where nothing is)
CASES = [
    ("llava_next", None, "divprune:keep=0.25", None),
    ("llava_next", None, "fastv:layer=2,keep=0.5", None),
    ("llava_next", None, "sparsevlm:keep=0.5", None),
    ("lfm2_vl", None, "divprune:keep=0.25", RAGGED),
    ("lfm2_vl", None, "fastv:layer=3,keep=0.5", RAGGED),
    ("qwen3_5", None, "divprune:keep=0.25", RAGGED),
    ("qwen3_5", None, "tome:keep=0.5", RAGGED),
    ("qwen3_5", None, "fastv:layer=3,keep=0.5", RAGGED),
    ("mistral3", SLIDING, "divprune:keep=0.25", RAGGED),
    ("mistral3", WIDE, "divprune:keep=0.25", None),
    ("mistral3", SLIDING, "fastv:layer=2,keep=0.5", None),
    ("cohere2_vision", SLIDING, "fastv:layer=2,keep=0.5", None),
    ("gemma4", SLIDING, "divprune:keep=0.5", None),
]


@pytest.mark.parametrize(("family", "window", "spec", "refused"), CASES)
def test_rows_of_a_later_turn_are_as_alone_or_refused(family, window, spec, refused):
    sizes = sorted(set(EVERY[family].sizes))[:2] * 2
    two = Two(family, window, sizes[:2])
    with vtc.patched(two.model, "none"):
        together, alone = two.ask([0, 1]), [two.ask([row])[:, 0] for row in range(2)]
    for row in range(2):  # else the model itself mixes rows
        torch.testing.assert_close(together[:, row], alone[row], atol=3e-4, rtol=1e-4)
    with vtc.patched(two.model, spec):
        alone = [two.ask([row])[:, 0] for row in range(2)]
        if refused:
            with pytest.raises(ValueError, match=rf"{refused}.*run these rows apart"):
                two.ask([0, 1])
            assert two.ran == [TEXT]
            return
        together = two.ask([0, 1])
        for row in range(2):
            torch.testing.assert_close(together[:, row], alone[row], atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", ["divprune:keep=0.5", "fastv:layer=3,keep=0.5"])
@pytest.mark.parametrize("family", ["lfm2_vl", "qwen3_5"])
def test_a_prompt_is_not_refused(family, spec):
    """Padding in front of everything is neutral, between layers too."""
    two = Two(family, None, sorted(set(EVERY[family].sizes))[:2])
    rows = [Row((size,), 2) for size in two.sizes]
    with vtc.patched(two.model, spec):
        together = two.model(**two.family.inputs(two.model, rows)).logits[:, -1]
        for row, own in enumerate(rows):
            alone = two.model(**two.family.inputs(two.model, [own])).logits[0, -1]
            torch.testing.assert_close(together[row], alone, atol=3e-4, rtol=1e-4)


def test_a_window_that_fills_later_is_refused_then():
    two = Two("mistral3", ("sliding_window", 400), EVERY["mistral3"].sizes[:2])
    spec = "divprune:keep=0.5"
    with vtc.patched(two.model, spec):
        two.ask([0, 1])
    for width, ran in ((two.held[1] - 1, 1), (two.held[1], 2), (two.held[1] + 1, 3)):
        narrow = Two("mistral3", ("sliding_window", width), two.sizes)
        with vtc.patched(narrow.model, spec):
            with pytest.raises(ValueError, match=rf"windows of {width}"):
                narrow.ask([0, 1])
            assert len(narrow.ran) == ran


@pytest.mark.parametrize("spec", ["todre_stage2:layers=(2,),threshold=2.0"])
def test_what_a_picture_decides_is_refused_where_it_could_matter(spec):
    two = Two("lfm2_vl", None, EVERY["lfm2_vl"].sizes[:2])
    with vtc.patched(two.model, spec):
        two.ask([0])
        with pytest.raises(ValueError, match=r"run these rows apart"):
            two.ask([0, 1])
        assert two.ran == [TEXT]
