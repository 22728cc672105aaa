"""The tiny families themselves, unpatched: what the contract tests take for granted."""

import flash_stand_in
import pytest
import torch
from contract import ATTENTIONS, EVERY, HELD, SURVEYED, model_of
from covering import product
from families import SCENARIOS, scenario
from releases import BROKEN, is_broken
from transformers import PreTrainedConfig

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
every_family = pytest.mark.parametrize("family", HELD)
surveyed_too = pytest.mark.parametrize("family", EVERY)


def runs(cell):
    """Whether transformers runs a cell's family under its attention implementation."""
    return cell["attention"] != flash_stand_in.NAME or EVERY[cell["family"]].flash


def is_right(family, attention):
    """Whether an implementation gives what the others give."""
    return attention != flash_stand_in.NAME or not EVERY[family].needs_4d_mask


@torch.no_grad()
def last_logits(family, rows, attention="sdpa"):
    model = model_of(family, attention)
    return model(**EVERY[family].inputs(model, rows)).logits[:, -1]


def generate(family, rows, attention="sdpa"):
    model = model_of(family, attention)
    batch = EVERY[family].inputs(model, rows)
    return model.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]


@product(family=HELD, attention=ATTENTIONS, name=SCENARIOS, where=runs)
def test_each_row_equals_its_own_batch_of_one(family, attention, name, compared):
    rows = scenario(EVERY[family], name)
    together = last_logits(family, rows, attention)
    for index in compared(len(rows)):
        torch.testing.assert_close(together[index], last_logits(family, [rows[index]], attention)[0], **TOLERANCE)


@product(family=HELD, attention=ATTENTIONS[1:], name=SCENARIOS, where=runs)
def test_attention_implementations_agree(family, attention, name):
    rows = scenario(EVERY[family], name)
    expected, found = last_logits(family, rows), last_logits(family, rows, attention)
    if is_right(family, attention):
        torch.testing.assert_close(found, expected, **TOLERANCE)
    else:
        assert not torch.allclose(found, expected, **TOLERANCE)


@product(family=HELD, attention=ATTENTIONS[1:], each="value")
def test_generation_varies_and_agrees_between_implementations(family, attention):
    rows = scenario(EVERY[family], "ragged")
    new = generate(family, rows)
    assert new.shape == (len(rows), 8)
    assert all(len(row.unique()) > 1 for row in new)
    assert len(new.unique(dim=0)) == len(rows)
    if runs({"family": family, "attention": attention}) and is_right(family, attention):
        assert torch.equal(generate(family, rows, attention), new)


@pytest.mark.parametrize("family", sorted({family for *_, family, _ in BROKEN}))
@torch.no_grad()
def test_what_is_called_broken_is(family):
    for attention in ATTENTIONS:
        if is_broken(family, attention):
            model = EVERY[family].build(attn=attention)
            with pytest.raises((RuntimeError, ValueError, AttributeError)):
                model(**EVERY[family].inputs(model, scenario(EVERY[family], "ragged")))


def dictionaries(value):
    """Every dictionary in a configuration, or in what a class declares."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else vars(value).values():
        if isinstance(part, dict | PreTrainedConfig):
            yield from dictionaries(part)


@surveyed_too
def test_a_model_shares_no_dictionary_with_other_families(family):
    config = EVERY[family].build().config
    declared = {id(found) for kind in type(EVERY[family]).__mro__[:-1] for found in dictionaries(dict(vars(kind)))}
    assert not declared & {id(found) for found in dictionaries(config)}


@surveyed_too
def test_pixels_matter(family):
    model = model_of(family)
    batch = EVERY[family].inputs(model, scenario(EVERY[family], "several_images"))
    (name,) = (name for name in batch if name.startswith("pixel_values"))
    with torch.no_grad():
        bare = model(**batch).logits[:, -1]
        other = model(**batch | {name: batch[name].flip(-1)}).logits[:, -1]
    assert ((bare - other).abs().amax(dim=1) > 1e-2).all()


@pytest.mark.parametrize("family", [name for name in SURVEYED if SURVEYED[name].padded_alike])
def test_surveyed_rows_equal_their_own_batch_of_one(family):
    rows = scenario(EVERY[family], "ragged")
    together = last_logits(family, rows)
    for index, row in enumerate(rows):
        torch.testing.assert_close(together[index], last_logits(family, [row])[0], **TOLERANCE)


@every_family
def test_right_padding_gives_the_same_logits(family):
    model = model_of(family)
    rows = scenario(EVERY[family], "ragged")
    batch = EVERY[family].inputs(model, rows, padding="right")
    last = batch["attention_mask"].sum(dim=1) - 1
    with torch.no_grad():
        logits = model(**batch).logits[torch.arange(len(rows)), last]
    torch.testing.assert_close(logits, last_logits(family, rows), **TOLERANCE)


@surveyed_too
def test_visual_tokens_counts_placeholders(family):
    for name in SCENARIOS:
        rows = scenario(EVERY[family], name)
        placeholders = (EVERY[family].inputs(model_of(family), rows)["input_ids"] == EVERY[family].image_id).sum(dim=1)
        assert [sum(row) for row in EVERY[family].visual_tokens(rows)] == placeholders.tolist()
