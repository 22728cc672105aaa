"""TRIM: relevance by CLIP's metric, how many are kept, and the mean of the rest."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_recoverable
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_methods import dense
from test_selectors import LAYOUTS, quick, shown_to, visual_tokens
from torch import Tensor
from torch.testing import assert_close

from vtc import Trim, VisualTokens
from vtc.method.visual_tokens import Projection
from vtc.model.layout import Grid
from vtc.model.parts import Parts
from vtc.selectors.crops import crop_tokens
from vtc.selectors.outliers import above_quartiles
from vtc.selectors.question.trim import merge_rest, relevance

towers = test_recoverable.towers


def image(features: Tensor, text: Tensor, hidden: Tensor | None = None) -> VisualTokens:
    images, tokens, _ = features.shape
    rows = torch.randn(images, tokens, 5, generator=torch.Generator().manual_seed(tokens))
    return VisualTokens(
        features=features,
        grids=(Grid(0, 1, 1, tokens),),
        separators=torch.zeros(tokens, dtype=torch.bool),
        hidden={} if hidden is None else {2: hidden},
        projection=Projection(rows, None, lambda x: 3 * x),
        text=tuple(text),
    )


def random_image(tokens: int, seed: int, images: int = 1) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    return image(torch.randn(images, tokens, 8, generator=generator), torch.randn(images, 3, 8, generator=generator))


def cosines(visual: VisualTokens, index: int) -> Tensor:
    """Of each token to the mean of the text, in float64."""
    features, text = visual.features[index].double(), visual.text[index].double().mean(dim=0)
    return (features @ text) / features.norm(dim=1) / text.norm()


# ---------------------------------------------------------------- the rule


@quick
@given(tokens=st.integers(3, 60), seed=st.integers(0, 99), images=st.integers(1, 3), data=st.data())
def test_tokens_are_the_algorithm_step_by_step(tokens: int, seed: int, images: int, data: Any) -> None:
    visual = random_image(tokens, seed, images)
    k = data.draw(st.integers(2, tokens - 1))
    reduction = Trim(keep=k).select(visual, k)
    assert reduction.features is not None and visual.projection is not None
    for index in range(images):
        score = cosines(visual, index)
        ranked = sorted(range(tokens), key=lambda i: -score[i])
        kept, rest = sorted(ranked[: k - 1]), ranked[k - 1 :]
        x = visual.projection.rows[index]
        assert_close(reduction.features[index], 3 * torch.cat([x[kept], x[rest].mean(dim=0, keepdim=True)]))
        assert reduction.kept[index].tolist() == sorted([*kept, rest[0]])


def test_relevance_is_minus_the_plain_product_or_the_cosine() -> None:
    tokens, text = torch.tensor([[3.0, 4], [0, 0], [-30, 40], [float("nan"), 1]]), torch.tensor([2.0, 0])
    assert relevance(tokens, text).tolist() == [-6, 0, 60, 0]
    assert_close(relevance(tokens, text, cosine=True), torch.tensor([0.6, 0, -0.6, 0]))
    assert relevance(tokens, torch.zeros(2), cosine=True).tolist() == [0] * 4
    assert relevance(tokens.half() * 1000, text.half() * 1000).isfinite().all()


def test_equal_scores_keep_the_first_places() -> None:
    merged = merge_rest(torch.ones(1, 7), 2)
    assert merged.sequence.tolist() == [[0, 1, 2]] and merged.weight[0, 2:].tolist() == pytest.approx([0.2] * 5)
    silent = replace(random_image(12, 0), text=())
    assert Trim(keep=4).select(silent, 4).kept.tolist() == [[0, 1, 2, 3]]
    assert Trim().select(silent, 12).kept.tolist() == [[0, 1]]
    assert Trim().select(replace(silent, text=(torch.zeros(0, 8),)), 12).kept.tolist() == [[0, 1]]


def test_one_token_is_the_most_relevant_and_all_are_all() -> None:
    visual = random_image(9, 4)
    assert Trim(keep=1).select(visual, 1).kept.tolist() == [[int(cosines(visual, 0).argmax())]]
    lone = random_image(1, 0)
    reduction = Trim().select(lone, 1)
    assert lone.projection is not None
    assert reduction.kept.tolist() == [[0]]
    assert_close(reduction.features, 3 * lone.projection.rows)


def test_the_picture_decides_by_the_outliers_of_a_softmax() -> None:
    visual = random_image(80, 1)
    visual.features[0, [5, 33, 70]] = 30 * visual.text[0].mean(dim=0) + torch.randn(3, 8) / 100
    probability = cosines(visual, 0).softmax(dim=0)
    expected = int(above_quartiles(probability))
    reduction = Trim().select(visual, 80)
    assert reduction.kept.shape == (1, max(expected, 1) + 1)
    # what the softmax stretches stands out, where the plain numbers don't
    score = torch.linspace(-3, 3, 40)[None]
    assert int(above_quartiles(score)[0]) == 0 and int(above_quartiles(score.softmax(dim=1))[0]) > 0


@pytest.mark.parametrize("tower", ["rows", "joined"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_crop_is_treated_by_itself(layout: str, tower: str) -> None:
    visual = shown_to(Trim(), visual_tokens(layout, tower))
    whole = Trim().select(visual, visual.features.shape[1])
    kept, rows = [], []
    for tokens in crop_tokens(visual):
        projection = visual.projection
        if projection is not None:
            projection = replace(projection, rows=projection.rows[:, tokens])
        alone = replace(
            visual, features=visual.features[:, tokens], grids=(Grid(0, 1, 1, len(tokens)),), crops=None,
            separators=visual.separators[tokens], projection=projection,
        )  # fmt: skip
        part = Trim().select(alone, len(tokens))
        kept += tokens[part.kept[0]].tolist()
        rows.append(part.features)
    assert whole.kept[0].tolist() == sorted(kept)
    if tower == "rows":
        assert_close(whole.features, torch.cat([x for x in rows if x is not None], dim=1))
        return
    assert whole.mixing is not None  # each at its own place, in order
    assert_close(dense(whole.mixing, len(kept), len(visual.separators)).sum(dim=2), torch.ones(1, len(kept)))


# ---------------------------------------------------------------- CLIP


def with_clip(towers: tuple[Path, Path], **fields: Any) -> Trim:
    return Trim(clip=str(towers[0]), tokenizer=str(towers[1]), **fields)


def test_clip_scores_what_the_projector_reads(towers: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer, CLIPModel

    model, writer = CLIPModel.from_pretrained(towers[0]).eval(), AutoTokenizer.from_pretrained(towers[0])
    ids = AutoTokenizer.from_pretrained(towers[1])("what is the red thing", return_tensors="pt")["input_ids"][0]
    hidden = torch.randn(2, 30, 12, generator=torch.Generator().manual_seed(0)) * 3
    visual = replace(random_image(30, 2, images=2), hidden={2: hidden}, question=(ids, ids[:2]))
    with torch.no_grad():
        expected = []
        for index, question in enumerate(("what is the red thing", "what is")):
            states = model.text_model(**writer(question, return_tensors="pt")).last_hidden_state
            text = model.text_projection(states[0, -1])
            expected.append(model.visual_projection(model.vision_model.post_layernorm(hidden[index])) @ text)
    product = torch.stack(expected)
    method = with_clip(towers, keep=7)
    lowest = product.argsort(dim=1)
    for index, kept in enumerate(method.select(visual, 7).kept):
        assert kept.tolist() == lowest[index, :7].sort().values.tolist()  # the mean at the place of the seventh
    paper = with_clip(towers, keep=1, paper=True)
    assert paper.select(visual, 1).kept[0, 0] == relevance(*embedded(paper, hidden[0]), cosine=True).argmax()
    adaptive = with_clip(towers).select(visual_of(visual, 0), 30)
    assert adaptive.kept.shape[1] == 1 + max(int(above_quartiles((-product[0]).softmax(dim=0))), 1)
    silent = replace(visual, question=(torch.tensor([0, 1]), torch.tensor([], dtype=torch.long)))
    assert method.select(silent, 7).kept.tolist() == [list(range(7))] * 2


def embedded(method: Trim, hidden: Tensor) -> tuple[Tensor, Tensor]:
    text = method._clip_text.text("what is the red thing", hidden.device)
    return method._clip_text.image(hidden), text[0]


def visual_of(visual: VisualTokens, index: int) -> VisualTokens:
    alone, projection = slice(index, index + 1), visual.projection
    assert projection is not None
    return replace(
        visual, features=visual.features[alone], hidden={2: visual.hidden[2][alone]}, text=visual.text[alone],
        question=visual.question[alone], projection=replace(projection, rows=projection.rows[alone]),
    )  # fmt: skip


def test_what_is_read_and_what_is_refused(towers: tuple[Path, Path], tmp_path: Path) -> None:
    layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    parts = Parts("llava", layers, layers, (), tuple(layers), True, -2)
    needs = Trim().needs(parts)
    assert needs.projection and needs.text and not needs.hidden
    assert with_clip(towers).needs(parts).hidden == (2,)
    assert repr(with_clip(towers)) == repr(with_clip(towers)) and with_clip(towers) == with_clip(towers)
    with pytest.raises(ValueError, match="give both, or neither"):
        Trim(clip="somewhere")
    with pytest.raises(TypeError, match="tokenizer=3 is a int"):
        Trim(clip="x", tokenizer=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="paper=0 is a int"):
        Trim(paper=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"clip='.*nothing' can't be loaded"):
        Trim(clip=str(tmp_path / "nothing"), tokenizer=str(towers[1])).needs(parts)
    with pytest.raises(ValueError, match="vision tower of width 12, and this one has 5"):
        wrong = replace(random_image(9, 0), hidden={2: torch.randn(1, 9, 5)}, question=(torch.tensor([4, 5]),))
        with_clip(towers, keep=3).select(wrong, 3)
    assert math.isclose(float(relevance(torch.ones(1, 2), torch.ones(2), cosine=True)), 1, abs_tol=1e-6)
