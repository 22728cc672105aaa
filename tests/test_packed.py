"""Several samples packed into one row: each is compressed as if it stood in a row of its own."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import flash_stand_in
import pytest
import torch
from families import FAMILIES, Row
from families_more import MORE
from packing import alone, blocks, counted, on_axes, packed, told_by_lengths, without

import vtc
from vtc.method.visual_tokens import Needs

FLASH = flash_stand_in.NAME
SELECTORS = ["divprune:keep=0.5", "hiprune:keep=0.5", "stride:keep=0.5,per=row", "tome:keep=0.5"]
LONGEST = 100


@dataclass
class Kept(vtc.DivPrune):
    """As DivPrune, with the position ids that tokens had."""

    positions: ClassVar[str] = "original"


@dataclass
class Asked(vtc.DivPrune):
    """As DivPrune, and remembers the questions that it was shown."""

    def needs(self, parts):
        return Needs(text=True)

    def select(self, visual, k):
        self.questions = getattr(self, "questions", []) + [ids.tolist() for ids in visual.question]
        return super().select(visual, k)


def rows_of(family):
    """Samples with one image, none, and two."""
    one, other, third = family.sizes
    return [Row((other,), 1), Row((), 3), Row((third, one), 2)]


@functools.cache
def built(name, attn):
    return {**FAMILIES, **MORE}[name].build(attn)


def prepared(name, attn="sdpa", rows=None):
    """(model, each sample alone, all in one row, tokens of each)."""
    family, model = {**FAMILIES, **MORE}[name], built(name, attn)
    rows = rows or rows_of(family)
    each, (whole, lengths) = alone(family, model, rows), packed(family, model, rows)
    drop = ("token_type_ids",) if name == "gemma3" else ()  # of which transformers reads the first sample's for all
    return model, [without(sample, *drop) for sample in each], without(whole, *drop), lengths


def positions_of(model, each, lengths):
    """As transformers wants them of packed rows."""
    with torch.no_grad():
        return on_axes(model, each) if hasattr(model.model, "get_rope_index") else counted(lengths)


def logits_alone(model, each, **more):
    return torch.cat([model(**sample, **more, use_cache=False).logits for sample in each], dim=1)


def takes_lengths(model, whole, lengths):
    """Whether the bare model can be told the samples' lengths: some releases hand them to the vision tower, too."""
    try:
        model(**whole, position_ids=counted(lengths), **told_by_lengths(lengths), use_cache=False)
    except (TypeError, ValueError):
        return False
    return True


def assert_close(packed, apart):
    torch.testing.assert_close(packed, apart, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("spec", SELECTORS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava", "internvl", "gemma3", "llava_onevision"])
def test_positions_that_start_again(family, spec, no_grad):
    model, each, whole, lengths = prepared(family)
    positions = positions_of(model, each, lengths)
    with vtc.patched(model, spec):
        packed = model(**whole, position_ids=positions, use_cache=False).logits
        assert_close(packed, logits_alone(model, each))


@pytest.mark.parametrize("attn", ["eager", FLASH])
@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "gemma3"])
def test_other_attention(family, attn, no_grad):
    model, each, whole, lengths = prepared(family, attn)
    positions = positions_of(model, each, lengths)
    with vtc.patched(model, "stride:keep=0.3,per=row"):
        packed = model(**whole, position_ids=positions, use_cache=False).logits
        assert_close(packed, logits_alone(model, each))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_all_tokens_kept_are_stock(family, no_grad):
    model, each, whole, lengths = prepared(family)
    positions = positions_of(model, each, lengths)
    bare = model(**whole, position_ids=positions, use_cache=False).logits
    assert_close(bare, logits_alone(model, each))
    with vtc.patched(model, "divprune:keep=1.0+fastv:keep=1.0"):
        assert torch.equal(model(**whole, position_ids=positions, use_cache=False).logits, bare)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0), (2, 2, 0, 1)])
def test_any_order(order, no_grad):
    rows = [rows_of(FAMILIES["llava"])[index] for index in order]
    model, each, whole, lengths = prepared("llava", rows=rows)
    with vtc.patched(model, "random:keep=0.3"):  # which draws by the image's place in its sample
        packed = model(**whole, position_ids=counted(lengths), use_cache=False).logits
        assert_close(packed, logits_alone(model, each))


@pytest.mark.parametrize("attn", ["sdpa", FLASH])
def test_one_axis_in_a_model_of_several(attn, no_grad):
    model, each, whole, lengths = prepared("qwen2_5_vl", attn)
    with vtc.patched(model, "divprune:keep=0.5"):
        packed = model(**whole, position_ids=counted(lengths), use_cache=False).logits
        numbered = [sample | {"position_ids": counted([n])} for sample, n in zip(each, lengths, strict=True)]
        assert_close(packed, logits_alone(model, numbered))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
@pytest.mark.parametrize("cached", [False, True])
def test_masks_of_blocks(family, dtype, cached, no_grad):
    model, each, whole, lengths = prepared(family)
    more = {"position_ids": positions_of(model, each, lengths), "attention_mask": blocks(lengths, dtype)}
    with vtc.patched(model, "stride:keep=0.5,per=row"):
        packed = model(**whole, **more, use_cache=cached).logits
        assert_close(packed, logits_alone(model, each))


def test_masks_of_blocks_with_positions_that_go_on(no_grad):
    model, each, whole, lengths = prepared("llava")
    more = {"position_ids": torch.arange(sum(lengths))[None], "attention_mask": blocks(lengths)}
    with vtc.patched(model, "stride:keep=0.5,per=row"):
        assert_close(model(**whole, **more, use_cache=False).logits, logits_alone(model, each))


def test_a_mask_for_each_kind_of_layer(no_grad):
    model, each, whole, lengths = prepared("gemma3")
    window, place = model.config.text_config.sliding_window, torch.arange(sum(lengths))
    full = blocks(lengths)
    masks = {"full_attention": full, "sliding_attention": full & (place[:, None] - place < window)}
    with vtc.patched(model, "stride:keep=0.5,per=row"):
        packed = model(**whole, attention_mask=masks, position_ids=counted(lengths), use_cache=False).logits
        assert_close(packed, logits_alone(model, each))


def test_a_mask_of_one_sample_with_padding_is_not_packed(no_grad):
    model, (sample,), _, (length,) = prepared("llava", rows=[Row((1,), 1)])
    whole = without(sample, "input_ids") | {"input_ids": torch.nn.functional.pad(sample["input_ids"], (3, 0))}
    places = torch.arange(length + 3)
    mask = (places <= places[:, None]) & ((places >= 3) | (places[:, None] == places))
    more = {"attention_mask": mask[None, None], "position_ids": (places - 3).clamp(min=0)[None]}
    for spec in ("divprune:keep=0.5", "fastv:keep=0.5,layer=2"):
        with vtc.patched(model, spec):
            assert_close(model(**whole, **more, use_cache=False).logits[:, 3:], logits_alone(model, [sample]))


def test_padding_that_sees_everything_links_no_samples(no_grad):
    model, each, whole, lengths = prepared("llava")
    whole = without(whole, "input_ids") | {"input_ids": torch.nn.functional.pad(whole["input_ids"], (2, 0))}
    mask = torch.nn.functional.pad(blocks(lengths), (2, 0, 2, 0))
    mask[:, :, :2] = True
    positions = torch.nn.functional.pad(counted(lengths), (2, 0))
    with vtc.patched(model, "stride:keep=0.5,per=row"):
        packed = model(**whole, attention_mask=mask, position_ids=positions, use_cache=False).logits
        assert_close(packed[:, 2:], logits_alone(model, each))


@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "gemma3"])
@pytest.mark.parametrize("form", ["positions", "lengths alone"])
def test_lengths_of_flash_attention(family, form, no_grad):
    model, each, whole, lengths = prepared(family, FLASH)
    if not takes_lengths(model, whole, lengths):
        pytest.skip("this release of transformers hands them to the vision tower")
    more = told_by_lengths(lengths)
    if form == "positions":
        more["position_ids"] = positions_of(model, each, lengths)
    elif hasattr(model.model, "get_rope_index"):
        more["position_ids"] = on_axes(model, each, text=False)
    with vtc.patched(model, "stride:keep=0.5,per=row"):
        packed = model(**whole, **more, use_cache=False).logits
        assert_close(packed, logits_alone(model, each))


@pytest.mark.parametrize("kind", ["zeros", "counted"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_two_packed_rows_with_padding(family, attn, kind, no_grad):
    one, other, third = FAMILIES[family].sizes
    first, second = [Row((one,), 4), Row((other,), 6)], [Row((third,), 1), Row((), 3), Row((other, one), 5)]
    model, of_first, whole, lengths = prepared(family, attn, first)
    _, of_second, more, longer = prepared(family, attn, second)
    missing = sum(longer) - sum(lengths)
    rows = {}
    for name, value in whole.items():
        padded = torch.nn.functional.pad(value, (0, missing)) if len(value) == 1 and value.dim() == 2 else value
        rows[name] = torch.cat([padded, more[name]])
    positions = positions_of(model, of_first, lengths)
    tail = torch.arange(missing) * (kind == "counted")
    positions = torch.cat([positions, tail.expand(*positions.shape[:-1], -1)], dim=-1)
    positions = torch.cat([positions, positions_of(model, of_second, longer)], dim=-2)
    with vtc.patched(model, "stride:keep=0.3,per=row"):
        got = model(**rows, position_ids=positions, use_cache=False).logits
        assert_close(got[:1, : sum(lengths)], logits_alone(model, of_first))
        assert_close(got[1:], logits_alone(model, of_second))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_methods_that_keep_positions(family, no_grad):
    model, each, whole, lengths = prepared(family)
    positions = positions_of(model, each, lengths)
    with vtc.patched(model, Kept(keep=0.5)):
        packed = model(**whole, position_ids=positions, use_cache=False).logits
        assert_close(packed, logits_alone(model, each))


def test_methods_that_keep_positions_under_flash(no_grad):
    model, each, whole, lengths = prepared("llava", FLASH)
    with vtc.patched(model, Kept(keep=0.5)):
        with pytest.raises(ValueError, match="keeps position ids, in whose gaps"):
            model(**whole, position_ids=counted(lengths), use_cache=False)
        if takes_lengths(model, whole, lengths):
            packed = model(**whole, position_ids=counted(lengths), **told_by_lengths(lengths), use_cache=False).logits
            assert_close(packed, logits_alone(model, each))


def test_the_question_is_the_sample_s(no_grad):
    model, each, whole, lengths = prepared("llava")
    asked = Asked(keep=0.5)
    with vtc.patched(model, asked):
        model(**whole, position_ids=counted(lengths), use_cache=False)
    behind = []
    for sample, images in zip(each, (1, 0, 2), strict=True):
        ids = sample["input_ids"][0].tolist()
        after = [place for place, token in enumerate(ids) if token == model.config.image_token_id][-1:]
        behind += [ids[after[0] + 1 :]] * images if images else []
    assert asked.questions == behind


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_samples_that_begin_and_end_with_an_image(family, no_grad):
    """What is removed at a sample's end repeats its own last survivor, and at its begin nothing."""
    model, each, whole, lengths = prepared(family, rows=[Row((FAMILIES[family].sizes[0],), seed) for seed in (1, 2, 3)])
    ids = [sample["input_ids"][0] for sample in each]
    image = {int(token) for token in ids[0] if (ids[0] == token).sum() > 4}
    for sample, row in zip(each, ids, strict=True):
        here = torch.isin(row, torch.tensor(list(image))).nonzero().flatten()
        for name, value in sample.items():
            if value.shape[:2] == (1, len(row)):
                sample[name] = value[:, here]
    names = [name for name, value in whole.items() if value.shape[:2] == (1, sum(lengths))]
    whole |= {name: torch.cat([sample[name] for sample in each], dim=1) for name in names}
    lengths = [sample["input_ids"].shape[1] for sample in each]
    positions = positions_of(model, each, lengths)
    with vtc.patched(model, "random:keep=0.3"):
        packed = model(**whole, position_ids=positions, use_cache=False, output_hidden_states=True)
        apart = [model(**sample, use_cache=False, output_hidden_states=True) for sample in each]
    assert_close(packed.logits, torch.cat([one.logits for one in apart], dim=1))
    for number, state in enumerate(packed.hidden_states):
        assert_close(state, torch.cat([one.hidden_states[number] for one in apart], dim=1))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_gradients_and_loss(family):
    model, each, whole, lengths = prepared(family)
    positions = positions_of(model, each, lengths)
    labels = [sample["input_ids"].clone() for sample in each]
    for row in labels:
        row[:, 0] = -100
    counts = torch.tensor([float((row[:, 1:] >= 0).sum()) for row in labels])
    weight = model.get_input_embeddings().weight
    with vtc.patched(model, "divprune:keep=0.5"):
        loss = model(**whole, position_ids=positions, labels=torch.cat(labels, dim=1), use_cache=False).loss
        (together,) = torch.autograd.grad(loss, weight)
        losses = [model(**sample, labels=row, use_cache=False).loss for sample, row in zip(each, labels, strict=True)]
        apart = (torch.stack(losses) * counts).sum() / counts.sum()
        (sum_of_each,) = torch.autograd.grad(apart, weight)
    assert_close(loss, apart)
    assert_close(together, sum_of_each)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_the_trace_has_each_image_and_what_was_kept(family, no_grad):
    model, each, whole, lengths = prepared(family)
    positions = positions_of(model, each, lengths)
    with vtc.patched(model, "stride:keep=0.5,per=row"):
        model(**whole, position_ids=positions, use_cache=False)
        packed = vtc.trace(model)
        kept, total = [], 0
        for sample in each:
            model(**sample, use_cache=False)
            trace = vtc.trace(model)
            kept += [image.kept(0) for image in trace.images]
            total += int(trace.tokens_per_layer[0, 0])
    assert int(packed.tokens_per_layer[0, 0]) == total
    assert [image.kept(0).tolist() for image in packed.images] == [places.tolist() for places in kept]


# ---------------------------------------------------------------- refused, before anything is computed


def forms(model, each, whole, lengths, attn):
    """Every way in which a call may say that its row is packed."""
    positions = {"position_ids": positions_of(model, each, lengths)}
    if attn == FLASH:
        told = [told_by_lengths(lengths)] * takes_lengths(model, whole, lengths)
        return [positions, *told, *(positions | lengths for lengths in told)]
    masks = {"attention_mask": blocks(lengths)}
    return [positions, positions | masks] + [masks] * (not hasattr(model.model, "get_rope_index"))


@pytest.mark.parametrize("spec", ["fastv:keep=0.5,layer=2", "divprune:keep=0.5+pyramiddrop", "lazyllm"])
@pytest.mark.parametrize("attn", ["sdpa", FLASH])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_prunes_are_refused(family, attn, spec, no_grad):
    model, each, whole, lengths = prepared(family, attn)
    ran = []
    handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda *_: ran.append(1))
    said = forms(model, each, whole, lengths, attn)
    ran.clear()
    with vtc.patched(model, spec):
        for form in said:
            with pytest.raises(ValueError, match="chooses for whole rows; give each sample a row of its own"):
                model(**whole, **form, use_cache=False)
    assert not ran
    handle.remove()


REFUSED = {
    "a cache": ({"use_cache": True}, "where a cache is filled; give use_cache=False"),
    "a mask": ({"attention_mask": "ones"}, "where there is an attention_mask; leave it out"),
    "a numbered mask": ({"attention_mask": "numbers"}, "attention_mask has numbers up to 3"),
    "other lengths": ({"cu_seq_lens_q": torch.tensor([0, 9, LONGEST])}, "cu_seq_lens_q"),
    "a causal mask": ({"attention_mask": "causal"}, "where a mask of queries by keys lets them see each other"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_samples_that_transformers_mixes_are_refused(family, what, no_grad):
    model, each, whole, lengths = prepared(family)
    more, message = REFUSED[what]
    given = {
        "ones": torch.ones_like(whole["input_ids"]),
        "numbers": torch.arange(1, 4).repeat_interleave(torch.tensor(lengths))[None],
        "causal": blocks([sum(lengths)]),
    }
    more = {key: given.get(value, value) if isinstance(value, str) else value for key, value in more.items()}
    positions = positions_of(model, each, lengths)
    with vtc.patched(model, "divprune:keep=0.5"), pytest.raises(ValueError, match=message):
        model(**whole, **({"use_cache": False} | more), position_ids=positions)


def test_several_rows_under_flash_are_refused(no_grad):
    model, _, whole, lengths = prepared("llava", FLASH)
    twice = {name: torch.cat([value, value]) for name, value in whole.items()}
    with vtc.patched(model, "divprune:keep=0.5"):
        with pytest.raises(ValueError, match="under FlashAttention in a batch of several rows"):
            model(**twice, position_ids=counted(lengths).expand(2, -1), use_cache=False)
        if takes_lengths(model, whole, lengths):
            with pytest.raises(ValueError, match="name packed samples in a batch of several rows"):
                model(**twice, **told_by_lengths(lengths * 2), use_cache=False)


def test_an_image_in_two_samples_is_refused(no_grad):
    model, _, whole, lengths = prepared("llava")
    with vtc.patched(model, "divprune:keep=0.5"), pytest.raises(ValueError, match="an image of row 0 begins in one"):
        model(**whole, position_ids=counted([10, sum(lengths) - 10]), use_cache=False)


@pytest.mark.parametrize(("family", "attn"), [("llava", FLASH), ("gemma3", "sdpa")])
def test_nothing_follows_a_packed_cache(family, attn, no_grad):
    model, each, whole, lengths = prepared(family, attn)
    with vtc.patched(model, "divprune:keep=0.5"):
        output = model(**whole, position_ids=counted(lengths), use_cache=True)
        assert_close(output.logits, logits_alone(model, each))
        with pytest.raises(ValueError, match="filled with several samples packed into one row"):
            model(input_ids=torch.tensor([[20]]), past_key_values=output.past_key_values, use_cache=True)


def test_three_axes_are_one_sample_as_in_transformers(no_grad):
    model, each, whole, lengths = prepared("qwen2_5_vl")
    axes = on_axes(model, each, text=False)
    with vtc.patched(model, "stride:keep=1.0,per=row"):
        bare = model(**whole, position_ids=axes, use_cache=False).logits
    with vtc.patched(model, "stride:keep=0.5,per=row"):
        model(**whole, position_ids=axes, use_cache=False)
        kept = vtc.trace(model).tokens_per_layer[0, 0]
    visual = sum(int((sample["input_ids"] == model.config.image_token_id).sum()) for sample in each)
    assert kept == round(visual / 2)  # one budget for all
    assert (bare[:, lengths[0] :] - logits_alone(model, each)[:, lengths[0] :]).abs().max() > 0.1
