"""The tiny families themselves, unpatched: what the contract tests take for granted."""

import flash_stand_in
import pytest
import torch
from families import FAMILIES, SCENARIOS, scenario
from families_more import MORE

torch.set_num_threads(1)

ALL = FAMILIES | MORE
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
every_family = pytest.mark.parametrize("family", ALL.values(), ids=ALL)


@torch.no_grad()
def last_logits(family, model, rows):
    return model(**family.inputs(model, rows)).logits[:, -1]


def generate(family, model, rows):
    batch = family.inputs(model, rows)
    return model.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]


@every_family
@pytest.mark.parametrize("attn", ["sdpa", "eager", flash_stand_in.NAME])
def test_each_row_equals_its_own_batch_of_one(family, attn):
    if attn == flash_stand_in.NAME and not family.flash:
        pytest.skip("transformers doesn't run this family under flash attention")
    model = family.build(attn)
    for name in SCENARIOS:
        rows = scenario(family, name)
        alone = torch.cat([last_logits(family, model, [row]) for row in rows])
        torch.testing.assert_close(last_logits(family, model, rows), alone, **TOLERANCE, msg=name)


@every_family
def test_attention_implementations_agree(family):
    sdpa, eager = family.build("sdpa"), family.build("eager")
    flash = family.build(flash_stand_in.NAME) if family.flash else None
    for name in SCENARIOS:
        rows = scenario(family, name)
        expected = last_logits(family, sdpa, rows)
        torch.testing.assert_close(last_logits(family, eager, rows), expected, **TOLERANCE, msg=name)
        if flash is not None:
            same = torch.allclose(last_logits(family, flash, rows), expected, **TOLERANCE)
            assert same is not family.needs_4d_mask, name


@every_family
def test_generation_varies_and_agrees_between_implementations(family):
    rows = scenario(family, "ragged")
    new = generate(family, family.build(), rows)
    assert new.shape == (len(rows), 8)
    assert all(len(row.unique()) > 1 for row in new)
    assert len(new.unique(dim=0)) == len(rows)
    assert torch.equal(generate(family, family.build("eager"), rows), new)
    if family.flash and not family.needs_4d_mask:
        assert torch.equal(generate(family, family.build(flash_stand_in.NAME), rows), new)


@every_family
def test_pixels_matter(family):
    model = family.build()
    batch = family.inputs(model, scenario(family, "several_images"))
    (name,) = (name for name in batch if name in ("pixel_values", "pixel_values_videos"))
    with torch.no_grad():
        bare = model(**batch).logits[:, -1]
        other = model(**batch | {name: batch[name].flip(-1)}).logits[:, -1]
    assert ((bare - other).abs().amax(dim=1) > 1e-2).all()


@every_family
def test_right_padding_gives_the_same_logits(family):
    model = family.build()
    rows = scenario(family, "ragged")
    batch = family.inputs(model, rows, padding="right")
    last = batch["attention_mask"].sum(dim=1) - 1
    with torch.no_grad():
        logits = model(**batch).logits[torch.arange(len(rows)), last]
    torch.testing.assert_close(logits, last_logits(family, model, rows), **TOLERANCE)


@every_family
def test_visual_tokens_counts_placeholders(family):
    model = family.build()
    for name in SCENARIOS:
        rows = scenario(family, name)
        placeholders = (family.inputs(model, rows)["input_ids"] == family.image_id).sum(dim=1)
        assert [sum(row) for row in family.visual_tokens(rows)] == placeholders.tolist()
