"""What holds for recoverable: outliers among scores, merging, and the text tower that it loads."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_selectors import quick, same, shown_to, visual_tokens
from torch import Tensor
from torch.testing import assert_close

from vtc import VisualTokens
from vtc.attention.scores import Attention
from vtc.model.layout import Grid
from vtc.model.parts import Parts
from vtc.selectors.merging import cls_full_width
from vtc.selectors.outliers import local_outlier_factor, outlier_count
from vtc.selectors.question.recoverable import Counts, Recoverable, outlier_counts, recover

# ---------------------------------------------------------------- outliers


@pytest.mark.filterwarnings("ignore:Duplicate values")
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(2, 120),
    neighbours=st.sampled_from([1, 5, 10, 20]),
    kind=st.sampled_from(["normal", "softmax", "duplicates", "constant"]),
    seed=st.integers(0, 999),
)
def test_outliers_are_those_of_scikit_learn(tokens: int, neighbours: int, kind: str, seed: int) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    x = torch.randn(tokens, generator=torch.Generator().manual_seed(seed))
    if kind == "softmax":
        x = (3 * x).softmax(dim=0)
    elif kind == "duplicates":
        x[: tokens // 2] = x[0]
    elif kind == "constant":
        x[:] = x[0]
    oracle = neighbors.LocalOutlierFactor(n_neighbors=min(neighbours, tokens - 1))
    found = (oracle.fit_predict(x.double().numpy()[:, None]) == -1).sum()
    assert int(outlier_count(x, neighbours)) == found


@quick
@given(tokens=st.integers(1, 40), neighbours=st.integers(1, 25), seed=st.integers(0, 99))
def test_the_factor_is_its_definition(tokens: int, neighbours: int, seed: int) -> None:
    x = torch.randint(0, 12, (3, tokens), generator=torch.Generator().manual_seed(seed)).double()
    factor = local_outlier_factor(x, neighbours)
    k = min(neighbours, tokens - 1)
    for row, ours in zip(x.tolist(), factor, strict=True):
        near = [
            sorted((j for j in range(tokens) if j != i), key=lambda j: (abs(row[j] - row[i]), row[j]))[:k]
            for i in range(tokens)
        ]
        farthest = [abs(row[n[-1]] - row[i]) if k else 0.0 for i, n in enumerate(near)]
        density = [1 / (sum(max(abs(row[j] - row[i]), farthest[j]) for j in n) / k + 1e-10) if k else 1.0
                   for i, n in enumerate(near)]  # fmt: skip
        expected = [sum(density[j] for j in n) / k / density[i] if k else 1.0 for i, n in enumerate(near)]
        assert_close(ours, torch.tensor(expected, dtype=torch.float64))


def test_equal_numbers_have_equal_factors_in_any_order_and_scale() -> None:
    x = torch.tensor([0.0, 1, 1, 2, 3, 3, 3, 9, 9, 14])
    factor = local_outlier_factor(x, 3)
    assert factor[1] == factor[2] and factor[4] == factor[5] == factor[6] and factor[9] > 1.5
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(local_outlier_factor(x[order], 3), factor[order])
    assert_close(local_outlier_factor(x * 8 + 3, 3), factor, rtol=1e-6, atol=1e-6)
    assert int(outlier_count(torch.full((9,), float("nan")), 3)) == 0


# ---------------------------------------------------------------- recoverable


@given(counts=st.builds(Counts, st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)), k=st.integers(1, 100))
def test_scaled_counts_add_up_and_keep_their_proportions(counts: Counts, k: int) -> None:
    scaled = counts.scaled(k)
    assert scaled.total == k
    assert min(scaled.visual, scaled.text, scaled.centres) >= 0
    if not counts.total:
        assert scaled == Counts(k, 0, 0)
    else:
        assert abs(scaled.text - k * counts.text / counts.total) < 1
        assert abs(scaled.visual - k * counts.visual / counts.total) < 2  # one may come from a lone centre
        assert counts.scaled(counts.total) == counts


def recover_input(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(tokens, generator=generator).mul(2).softmax(dim=0)
    return visual, torch.randn(tokens, generator=generator) / 50, torch.randn(tokens, 8, generator=generator)


@quick
@given(tokens=st.integers(2, 60), seed=st.integers(0, 99), with_text=st.booleans(), data=st.data())
def test_recovering_is_the_algorithm_step_by_step(tokens: int, seed: int, with_text: bool, data: Any) -> None:
    visual, text, keys = recover_input(tokens, seed)
    n_visual = data.draw(st.integers(0, tokens))
    n_text = data.draw(st.integers(0, tokens - n_visual)) if with_text else 0
    left = tokens - n_visual - n_text
    centres = data.draw(st.integers(0, left - 1)) if left > 1 else 0
    part = recover(visual, text if with_text else None, keys, Counts(n_visual, n_text, centres))
    ranked = sorted(range(tokens), key=lambda i: -visual[i])
    chosen = ranked[:n_visual]
    chosen += sorted((i for i in range(tokens) if i not in chosen), key=lambda i: -text[i])[:n_text]
    rest = [i for i in ranked if i not in chosen]
    assert part.kept.tolist() == sorted(chosen) and part.centres.tolist() == rest[:centres]
    assert part.last.tolist() == (rest[centres : centres + 1] if centres else [])
    x = torch.randn(tokens, 3, generator=torch.Generator().manual_seed(seed))
    for centre in part.centres.tolist():
        others = torch.tensor([i for i in rest if i != centre])
        near = torch.cosine_similarity(keys[centre], keys[others], dim=-1) + 50 * text[others] * with_text
        nearest = others[near.topk(min(32, len(others))).indices]
        mine = part.centre == centre
        merged = (part.weight[mine, None] * x[part.source[mine]]).sum(dim=0)
        assert_close(merged, x[centre] + (visual[nearest, None] * x[nearest]).sum(dim=0))
    if centres:
        mine = part.centre == part.last
        merged = (part.weight[mine, None] * x[part.source[mine]]).sum(dim=0)
        assert_close(merged, (visual[rest[centres:], None] * x[rest[centres:]]).sum(dim=0))


def test_permuted_tokens_recover_the_same() -> None:
    visual, text, keys = recover_input(50, 2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    counts = outlier_counts(visual, text)
    assert outlier_counts(visual[order], text[order]) == counts
    before = recover(visual, text, keys, Counts(5, 4, 3))
    after = recover(visual[order], text[order], keys[order], Counts(5, 4, 3)).at(order)
    assert sorted(after.kept.tolist()) == before.kept.tolist()
    assert torch.equal(after.centres, before.centres) and torch.equal(after.last, before.last)
    pairs = [sorted(zip(p.source.tolist(), p.centre.tolist(), p.weight.tolist(), strict=True)) for p in (before, after)]
    assert pairs[0] == pairs[1]


def recoverable_image(visual: Tensor, text: tuple[Tensor, ...] = ()) -> VisualTokens:
    tokens = len(visual)
    return VisualTokens(
        features=torch.randn(1, tokens, 6, generator=torch.Generator().manual_seed(8)),
        grids=(Grid(0, 1, 1, tokens),),
        separators=torch.zeros(tokens, dtype=torch.bool),
        observed={"cls": visual[None]},
        keys={3: torch.randn(1, tokens, 2, 4, generator=torch.Generator().manual_seed(9))},
        text=text,
    )


def test_flat_scores_leave_the_floor_and_outliers_more() -> None:
    flat = recoverable_image(torch.full((60,), 1 / 61))
    assert Recoverable().select(flat, 60).kept.tolist() == [[0]]
    assert Recoverable(floor=7).select(flat, 60).kept.tolist() == [list(range(7))]
    assert Recoverable(floor=90).select(flat, 60).kept.tolist() == [list(range(60))]
    peaks = torch.linspace(0.001, 0.002, 60)
    peaks[[11, 40, 41]] = torch.tensor([0.2, 0.3, 0.25])
    kept = Recoverable().select(recoverable_image(peaks), 60).kept[0].tolist()
    assert {11, 40, 41} <= set(kept) and len(kept) < 20


def test_the_question_recovers_tokens() -> None:
    visual = recoverable_image(torch.full((60,), 1 / 61))
    asked = replace(visual, text=(visual.features[0, [17]].expand(3, -1) * 2,))
    features = torch.full((1, 60, 6), 1.0)
    features[0, :, 0] = torch.linspace(0, 0.01, 60)
    features[0, 17] = torch.tensor([1.0, -1, 1, -1, 1, -1])
    asked = replace(asked, features=features, text=(features[0, [17, 17]],))
    assert Recoverable().select(asked, 60).kept.tolist() == [[17]]
    assert Recoverable().select(replace(asked, text=(features[0, :0],)), 60).kept.tolist() == [[0]]


def test_attention_received_counts_as_a_share_of_the_image() -> None:
    """In a packed tower it is smaller the more images there are; what is merged must not be."""
    visual = shown_to(Recoverable(), visual_tokens("square", "joined"))
    many = replace(visual, received={3: visual.received[3] * 0.2})
    same(Recoverable(keep=9).select(many, 9), Recoverable(keep=9).select(visual, 9), 0, 25)


def test_full_width_attention_does_not_split_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 9, 4, generator=generator) for heads in (6, 3))
    row = cls_full_width(Attention(query, key, scaling=0.5))
    q = query[:, :, 0].flatten(1)
    k = key.repeat_interleave(2, dim=1).transpose(1, 2).flatten(2)
    assert_close(row, torch.softmax((k @ q[:, :, None])[..., 0] / math.sqrt(24), dim=-1))


# ---------------------------------------------------------------- recoverable: the CLIP text tower


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a tiny CLIP model with its tokenizer, and of a language model's tokenizer with other ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = ["<bos>", "<eos>", "<unk>", *["what", "is", "the", "red", "thing", "on", "a", "table"]]
    folders = []
    for name, order in (("clip", words), ("words", words[:3] + words[:2:-1])):
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(order)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        if name == "clip":
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
            )
        folder = tmp_path_factory.mktemp(name)
        special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<eos>"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
        folders.append(folder)
    torch.manual_seed(0)
    text = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).save_pretrained(folders[0])
    return folders[0], folders[1]


def with_clip(towers: tuple[Path, Path], **fields: Any) -> Recoverable:
    return Recoverable(clip=str(towers[0]), tokenizer=str(towers[1]), **fields)


def test_the_question_is_scored_by_the_clip_model(towers: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer, CLIPModel

    model, writer = CLIPModel.from_pretrained(towers[0]).eval(), AutoTokenizer.from_pretrained(towers[0])
    ids = AutoTokenizer.from_pretrained(towers[1])("what is on the table", return_tensors="pt")["input_ids"][0]
    hidden = torch.randn(7, 12)
    text = with_clip(towers)._clip_text
    question = text.question(ids)
    assert question == "what is on the table"
    with torch.no_grad():
        states = model.text_model(**writer(question, return_tensors="pt")).last_hidden_state
        feature = model.text_projection(states[0, -1])  # <eos> is the last one
        expected = torch.cosine_similarity(model.visual_projection(hidden), feature, dim=-1) / math.sqrt(10)
    assert_close(text.score(hidden, question), expected)
    assert_close(text.score(hidden.half(), question), expected, rtol=0, atol=1e-3)
    long = " ".join(["red thing"] * 20)  # cut to the text tower's length
    assert_close(text.score(hidden, long), text.score(hidden, long + " table"))


def test_embeddings_of_picture_and_text_by_themselves(towers: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer, CLIPModel

    model, writer = CLIPModel.from_pretrained(towers[0]).eval(), AutoTokenizer.from_pretrained(towers[0])
    torch.nn.init.normal_(model.vision_model.post_layernorm.weight)
    text, hidden = with_clip(towers)._clip_text, torch.randn(7, 12)
    text.norm.load_state_dict(model.vision_model.post_layernorm.state_dict())
    with torch.no_grad():
        assert_close(text.image(hidden), model.visual_projection(model.vision_model.post_layernorm(hidden)))

        def vectors(ids: list[int]) -> Tensor:
            states = model.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            return model.text_projection(states[ids.index(1) if 1 in ids else 0])

        short = text.text("red thing", hidden.device)
        assert_close(short, vectors(writer("red thing")["input_ids"])[None])
        assert torch.equal(text.text("red thing", hidden.device, windows=True), short)
        long = "what is the red thing on a table what is the red thing"
        ids = writer(long)["input_ids"]
        assert len(ids) == 15 and ids[-1] == 1
        assert_close(text.text(long, hidden.device), vectors([*ids[:7], 1])[None])
        windows = text.text(long, hidden.device, windows=True)
        assert_close(windows, torch.stack([vectors(ids[:8]), vectors([*ids[8:], 0])]))
    with pytest.raises(ValueError, match="vision tower of width 12, and this one has 5"):
        text.image(torch.randn(3, 5))


def test_the_method_asks_for_what_clip_needs_and_loads_it_once(towers: tuple[Path, Path]) -> None:
    method = with_clip(towers)
    layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    parts = Parts("llava", layers, layers, (), tuple(layers), True, -2)
    assert method.needs(parts).hidden == (3,)
    loaded = method._clip_text
    tokens, hidden = 40, torch.randn(1, 40, 12, generator=torch.Generator().manual_seed(0))
    visual = recoverable_image(torch.full((tokens,), 1 / 41))
    visual = replace(visual, hidden={3: hidden}, question=(torch.tensor([4, 5, 6]),))
    score = loaded.score(hidden[0], loaded.question(visual.question[0]))
    counts = outlier_counts(visual.observed["cls"][0], score)
    kept = method.select(visual, tokens).kept[0]
    assert len(kept) == max(counts.total, 1)
    budget = replace(method, keep=12)
    budget.__dict__["_clip_text"] = loaded
    expected = recover(visual.observed["cls"][0], score, visual.keys[3][0].flatten(1), counts.scaled(12))
    places = torch.cat([expected.kept, expected.centres, expected.last]).sort().values
    assert torch.equal(budget.select(visual, 12).kept[0], places)
    assert method._clip_text is loaded
    silent = replace(visual, question=(torch.tensor([0, 1]),))  # special tokens alone: no question
    assert method.select(silent, tokens).kept.tolist() == [[0]]
    assert repr(method) == repr(with_clip(towers)) and method == with_clip(towers)


def test_what_is_wrong_with_clip_is_said(towers: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import LlamaConfig

    with pytest.raises(ValueError, match="give both, or neither"):
        Recoverable(clip="somewhere")
    with pytest.raises(ValueError, match="give both, or neither"):
        Recoverable(tokenizer="somewhere")
    with pytest.raises(TypeError, match="clip=3 is a int"):
        Recoverable(clip=3, tokenizer="x")  # type: ignore[arg-type]
    layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    parts = Parts("llava", layers, layers, (), tuple(layers), True, -2)
    nothing = str(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"clip='.*nothing' can't be loaded .*; give the folder or hub id"):
        Recoverable(clip=nothing, tokenizer=str(towers[1])).needs(parts)
    with pytest.raises(ValueError, match=r"tokenizer='.*nothing' can't be loaded"):
        Recoverable(clip=str(towers[0]), tokenizer=nothing).needs(parts)
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="is a llama model"):
        Recoverable(clip=str(tmp_path / "llama"), tokenizer=str(towers[1])).needs(parts)
    with pytest.raises(ValueError, match="vision tower of width 12, and this one has 5"):
        with_clip(towers)._clip_text.score(torch.randn(3, 5), "red")
