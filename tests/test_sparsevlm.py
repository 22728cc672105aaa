"""SparseVLM: its mathematics against a loop over tokens, its counts, and what it does in models."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contract import EVERY, model_of
from families import scenario
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import vtc
from vtc.attention.scores import Attention
from vtc.method.prune import Decision, Rows
from vtc.ops.clusters import density_peaks
from vtc.prunes.attention.raters import choose_raters, corrected_attention, gravity, relevance, strongest_heads
from vtc.prunes.attention.recycling import Recycling, clusters, laid_out, most_kept, recycled
from vtc.prunes.attention.sparsevlm import SparseVLM

# ---------------------------------------------------------------- the words of the paper and the code, token by token


def clustered(x: Tensor, count: int) -> list[list[int]]:
    """Members of each cluster, best centre first."""
    number = len(x)
    apart = [[float((a - b).norm()) / math.sqrt(x.shape[1]) for b in x.double()] for a in x.double()]
    apart = [[round(d, 9) for d in row] for row in apart]  # equal tokens are equally far from a third
    density = [round(math.exp(-sum(d * d for d in sorted(row)[:count]) / count), 9) for row in apart]
    largest = max(max(row) for row in apart)
    delta = [
        min([apart[i][j] for j in range(number) if density[j] > density[i]], default=largest) for i in range(number)
    ]
    score = [round(density[i] * delta[i], 9) for i in range(number)]
    centres = sorted(range(number), key=lambda i: (-score[i], i))[:count]
    members: list[list[int]] = [[] for _ in centres]
    for i in range(number):
        own = centres.index(i) if i in centres else min(range(count), key=lambda c: (apart[i][centres[c]], c))
        members[own].append(i)
    return [[centre, *sorted(set(group) - {centre})] for centre, group in zip(centres, members)]


def standing(hidden: Tensor, score: Tensor, blocks: list[list[int]], kept: int, count: int) -> SimpleNamespace:
    """What stands in each block afterwards, [rows], and the place of the centre that each merged token went into."""
    places = [place for block in blocks for place in block]
    ranked = sorted(places, key=lambda place: (-float(score[place]), place))
    stay, rest = set(ranked[:kept]), ranked[kept:]
    merge = rest[: math.floor(0.3 * len(rest)) + 1] if count else []
    groups = [[merge[i] for i in group] for group in clustered(hidden[merge], count)] if count else []
    means = [hidden[group].double().sum(dim=0) / (len(group) + 1e-6) for group in groups]
    after, own_places = [], {}
    for block in blocks:
        after.append([hidden[place].double() for place in block if place in stay])
        after[-1] += [mean for group, mean in zip(groups, means) if group[0] in block]
    own_places = {group[0]: mean for group, mean in zip(groups, means)}
    return SimpleNamespace(
        after=after,
        alive=sorted(stay | set(own_places)),
        into={place: group[0] for group in groups for place in group},
        merged_at=own_places,
    )


#: Of each row: visual tokens of its blocks, with text before, between and behind them.
BATCHES = [[[40]], [[64, 9], [1], [], [30, 30, 20]], [[3, 2], [90]]]


def rows_of(blocks: list[list[int]], seed: int, packed: bool = True, duplicates: bool = False) -> tuple[Rows, Tensor]:
    """Rows padded on the left, with NaN in the padding, and a score [B, n] with ties."""
    gen = torch.Generator().manual_seed(seed)
    length = max(sum(row) + 2 * (len(row) + 1) for row in blocks)
    hidden = torch.randn(len(blocks), length, 6, generator=gen)
    if duplicates:
        hidden = hidden.sign()
    valid, visual = torch.zeros(2, len(blocks), length, dtype=torch.bool)
    for row, sizes in enumerate(blocks):
        place = length - sum(sizes) - 2 * (len(sizes) + 1)
        valid[row, place:] = True
        for size in sizes:
            visual[row, place + 2 : place + 2 + size] = True
            place += 2 + size
    hidden[~valid] = float("nan")
    instruction = valid & (torch.arange(length) >= length - 2)
    score = (torch.rand(len(blocks), length, generator=gen) * 40).round()
    return Rows(7, hidden, visual, valid, instruction, tail=2, packed=packed), score


def blocks_of(visual: Tensor) -> list[list[int]]:
    blocks: list[list[int]] = []
    for place in visual.nonzero()[:, 0].tolist():
        if blocks and blocks[-1][-1] == place - 1:
            blocks[-1].append(place)
        else:
            blocks.append([place])
    return blocks


def naive_kept(present: int, total: int) -> int:
    """The most that can be kept, by trying."""
    fitting = [k for k in range(present + 1) if k + clusters(present - k) <= total]
    return max(fitting, default=0)


@pytest.mark.parametrize("blocks", BATCHES, ids=str)
@pytest.mark.parametrize("share", [0.1, 0.35, 0.8])
@pytest.mark.parametrize(("packed", "duplicates"), [(True, False), (False, False), (True, True)])
def test_merging_is_what_the_description_says(
    blocks: list[list[int]], share: float, packed: bool, duplicates: bool
) -> None:
    rows, score = rows_of(blocks, seed=len(blocks), packed=packed, duplicates=duplicates)
    counts = [math.floor(share * sum(row)) for row in blocks]
    counts[-1] = max(counts[-1], 1)
    decision = SparseVLM().decide(rows, counts, {"score": score})
    for row, total in enumerate(counts):
        ours = SimpleNamespace(
            hidden=decision.hidden[row], alive=decision.alive[row].nonzero()[:, 0].tolist(), into=decision.into[row]
        )
        kept = naive_kept(sum(blocks[row]), total)
        by_hand = standing(rows.hidden[row], score[row], blocks_of(rows.visual[row]), kept, total - kept)
        assert ours.alive == by_hand.alive and len(ours.alive) == total
        assert {p: t for p, t in enumerate(ours.into.tolist()) if t >= 0} == by_hand.into
        if packed:
            after = [vector for block in by_hand.after for vector in block]
        else:
            after = [by_hand.merged_at.get(place, rows.hidden[row, place].double()) for place in by_hand.alive]
        for place, expected in zip(ours.alive, after, strict=True):
            assert_close(ours.hidden[place].double(), expected, rtol=0, atol=1e-5)
        others = rows.valid[row] & ~rows.visual[row]
        assert torch.equal(ours.hidden[others], rows.hidden[row, others])


@pytest.mark.parametrize(
    ("method", "counts", "packed"),
    [
        (SparseVLM(), [20, 12, 7], True),  # the second row stays as it is
        (SparseVLM(), [20, 12, 7], False),
        (SparseVLM(layers=(7,), keeps=(20,)), [22, 12, 22], True),
    ],
)
def test_rows_of_a_batch_do_not_meet(method: SparseVLM, counts: list[int], packed: bool) -> None:
    rows, score = rows_of([[64, 9], [12], [30, 30]], seed=3, packed=packed)
    together = method.decide(rows, counts, {"score": score})
    assert torch.equal(together.hidden[1][rows.valid[1]], rows.hidden[1][rows.valid[1]])
    assert (together.into[1] == -1).all()
    for row, count in enumerate(counts):
        own = rows.valid[row]
        names = ("hidden", "visual", "valid", "instruction")
        alone = Rows(7, **{name: getattr(rows, name)[row, own][None] for name in names}, tail=2, packed=packed)
        decision = method.decide(alone, [count], {"score": score[row, own][None]})
        assert torch.equal(decision.alive[0], together.alive[row, own])
        goes = decision.alive[0] | ~alone.visual[0]
        assert torch.equal(decision.hidden[0, goes], together.hidden[row, own][goes])


def test_a_row_with_nan_and_equal_scores_keeps_its_count() -> None:
    rows, score = rows_of([[50]], seed=1)
    for bad in (torch.full_like(score, float("nan")), torch.zeros_like(score), torch.full_like(score, float("inf"))):
        decision = SparseVLM().decide(rows, [20], {"score": bad})
        assert int(decision.alive.sum()) == 20
        assert decision.alive[0].nonzero()[:15, 0].tolist() == list(range(2, 17))  # ties: the first


@pytest.mark.parametrize("recycle", [True, False])
def test_a_rank_decides_for_each_row_alone(recycle: bool) -> None:
    """Kept: rank · 2 - 1, one less than is there at most; all where the rank is full, or one would be left alone."""
    blocks = [[50], [9], [5], [6], [], [40]]
    rows, score = rows_of(blocks, seed=5)
    ranks, kept = [4, 4, 5, 4, 0, 1], [7, 7, 5, 5, 0, 1]
    method, memory = SparseVLM(rank=(2.0, -1.0), recycle=recycle), {"score": score, "rank": torch.tensor(ranks)}
    decision = method.decide(rows, [sum(row) for row in blocks], memory)
    merged = [clusters(sum(row) - k) if recycle else 0 for row, k in zip(blocks, kept)]
    assert merged == ([2, 1, 0, 1, 0, 2] if recycle else [0] * 6)
    assert decision.alive.sum(dim=1).tolist() == [k + c for k, c in zip(kept, merged)]
    if recycle:
        for row in (2, 3):
            assert torch.equal(decision.hidden[row][rows.valid[row]], rows.hidden[row][rows.valid[row]])


def test_nothing_waits_for_the_device() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        rows, _ = rows_of([[64, 9], [30]], seed=0)
        tensors = {name: mode.from_tensor(getattr(rows, name)) for name in ("hidden", "visual", "valid", "instruction")}
        rows = Rows(3, **tensors, tail=2)
        query = mode.from_tensor(torch.randn(2, 4, rows.visual.shape[1], 8))
        tables = (query[:, 0], query[:, 1])
        for method in (SparseVLM(), SparseVLM(keeps=(0.5, 20, 10)), SparseVLM(version="plus")):
            memory: dict[str, Tensor] = {}
            rows.rotary = tables
            method.on_entry(rows, memory)
            method.on_attention(rows, Attention(query, query[:, :2], 1.0), memory)
            assert isinstance(method.decide(rows, [30, 30], memory), Decision)


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("keeps", "left"),
    [
        ((300, 200, 110), [309, 204, 113]),
        ((303, 110, 36), [312, 117, 39]),
        ((238, 48, 26), [249, 55, 27]),
        ((66, 30, 17), [82, 32, 18]),
    ],
)
def test_the_published_lists_leave_the_published_counts(keeps: tuple[int, ...], left: list[int]) -> None:
    assert [SparseVLM(keeps=keeps).count_at(stage, 576) for stage in range(3)] == left
    for dropping in (SparseVLM(keeps=keeps, recycle=False), SparseVLM(keeps=keeps, version="plus")):
        assert [dropping.count_at(stage, 576) for stage in range(3)] == list(keeps)
    shares = tuple(keep / 576 + 1e-9 for keep in keeps)
    assert [SparseVLM(keeps=shares).count_at(stage, 576) for stage in range(3)] == left


def test_small_images() -> None:
    for present in (0, 1, 2, 100):  # at least one is not kept, and merged with itself alone
        assert [SparseVLM(keeps=(300, 200, 110)).count_at(stage, present) for stage in range(3)] == [present] * 3
    dropping = SparseVLM(keeps=(300, 200, 110), recycle=False)
    assert [dropping.count_at(stage, 100) for stage in range(3)] == [99, 98, 97]
    assert [dropping.count_at(stage, 1) for stage in range(3)] == [0, 0, 0]


@settings(max_examples=40, deadline=None)
@given(present=st.integers(0, 400), share=st.floats(0, 1))
def test_as_many_as_fit_are_kept_and_the_total_is_met(present: int, share: float) -> None:
    total = math.floor(share * present)
    kept = int(most_kept(torch.tensor([present]), torch.tensor([total]), 400))
    assert kept == naive_kept(present, total)
    if total >= clusters(present):
        assert kept + clusters(present - kept) == total


@settings(max_examples=30, deadline=None)
@example(present=100, keep=70, seed=0)  # 71 kept and one merged would be 72 as well
@example(present=100, keep=0.7, seed=0)
@given(present=st.integers(1, 150), keep=st.one_of(st.integers(1, 200), st.floats(0.02, 1.0)), seed=st.integers(0, 9))
def test_what_goes_on_is_what_was_counted(present: int, keep: float, seed: int) -> None:
    """Also where two numbers of kept tokens give one total: the one that `keeps` says is taken."""
    method = SparseVLM(keeps=(keep,), layers=(1,))
    rows, score = rows_of([[present]], seed=seed)
    score = torch.arange(score.shape[1])[None].flip(1)
    total = method.count_at(0, present)
    if total == present:
        return
    memory = {"score": score.float(), "reached": torch.tensor([present])}
    decision = method.decide(rows, [total], memory)
    wanted = min(keep if isinstance(keep, int) else math.floor(keep * present), present - 1)
    assert int(decision.alive.sum()) == total == wanted + clusters(present - wanted)
    assert (decision.into[0] >= 0).sum() == recycled(present - wanted)
    assert torch.equal(decision.hidden[0, 2 : 2 + wanted], rows.hidden[0, 2 : 2 + wanted])


# ---------------------------------------------------------------- raters, clusters, heads


def test_raters_are_the_words_above_the_mean() -> None:
    gen = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 30, 8, generator=gen)
    hidden[1, :4] = float("nan")
    visual, text = torch.zeros(2, 30, dtype=torch.bool), torch.zeros(2, 12, dtype=torch.bool)
    visual[0, 2:18], visual[1, 6:14] = True, True
    text[0], text[1, 3:] = True, True
    found = relevance(hidden, visual, text, chunk=7)
    for row, first in ((0, 18), (1, 21)):
        words = hidden[row, first:]
        expected = torch.softmax(hidden[row, visual[row]] @ words.T, dim=1).mean(dim=0)
        assert_close(found[row, text[row]], expected)
        assert (found[row, ~text[row]] == 0).all()
        assert choose_raters(found, text)[row, text[row]].tolist() == (expected > expected.mean()).tolist()
    same = choose_raters(torch.full((1, 4), 0.25), torch.tensor([[False, True, True, True]]))
    assert same.tolist() == [[False, True, True, True]]


def test_groups_of_clusters_have_their_own_counts() -> None:
    x = torch.randn(3, 25, 5, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(3, 25, dtype=torch.bool)
    valid[1, 17:], valid[2] = False, False
    x[~valid] = float("inf")
    found = density_peaks(x, torch.tensor([6, 3, 0]), 6, valid=valid)
    for group, (tokens, count) in enumerate([(25, 6), (17, 3)]):
        members = clustered(x[group, :tokens], count)
        assert found.centres[group, :count].tolist() == [cluster[0] for cluster in members]
        for number, cluster in enumerate(members):
            assert (found.member_of[group] == number).nonzero()[:, 0].tolist() == sorted(cluster)
    assert (found.member_of[~valid] == 6).all()


def test_gravity_is_what_rotary_positions_give_vectors_of_ones() -> None:
    dim, length = 16, 40
    theta = 1e4 ** -(torch.arange(0, dim, 2) / dim)
    angle = torch.arange(5, 5 + length)[:, None] * theta
    cos, sin = (torch.cat([f(angle), f(angle)], dim=1)[None] for f in (torch.cos, torch.sin))
    ones = torch.ones(1, 1, length, dim)
    query, key = apply_rotary_pos_emb(ones, ones, cos, sin)
    asking = slice(36, 40)
    found = gravity(cos, sin, asking)
    assert_close(found, (query[0, :, asking] @ key[0].transpose(1, 2)) / dim**0.5)
    far = torch.arange(36, 40)[:, None] - torch.arange(length)
    assert_close(found[0], 2 * (far[..., None] * theta).cos().sum(dim=-1) / dim**0.5)

    attention = Attention(torch.randn(2, 4, length, dim), torch.randn(2, 2, length, dim), dim**-0.5)
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0]])
    received = corrected_attention(attention, weights, (cos, sin), chunk=3)
    rows = attention.head_rows(torch.arange(36, 40).expand(2, -1)) / found[:, None]
    assert_close(received, (rows * weights[:, None, :, None]).sum(dim=2))
    visual = torch.arange(length).expand(2, -1) < 30
    sums = received[:, :, :30].sum(dim=2)
    heads = sums.topk(2).indices
    assert torch.equal(strongest_heads(received, visual, 2), heads)
    memory = {"raters": torch.nn.functional.pad(weights > 0, (36, 0))}
    rows = Rows(0, received, visual, torch.ones_like(visual), ~visual, tail=4, rotary=(cos, sin))
    SparseVLM(version="plus").on_attention(rows, attention, memory)
    assert_close(memory["score"], received[torch.arange(2)[:, None], heads].mean(dim=1))


# ---------------------------------------------------------------- in a model


def test_plus_keeps_positions_and_needs_rotary_tables() -> None:
    assert (SparseVLM(version="plus").positions, SparseVLM().positions) == ("original", "packed")
    rows, _ = rows_of([[9]], seed=0)
    memory = {"raters": rows.instruction}
    query = torch.randn(1, 2, rows.visual.shape[1], 4)
    with pytest.raises(ValueError, match="version='plus' needs the rotary tables of layer 7"):
        SparseVLM(version="plus").on_attention(rows, Attention(query, query, 0.5), memory)


@pytest.mark.parametrize(
    ("family", "method", "left"),
    [
        ("llava", SparseVLM(keep=0.25), [10, 6, 4]),
        ("llava", SparseVLM(keeps=(12, 8, 3)), [13, 9, 4]),
        ("qwen2_5_vl", SparseVLM(keep=1, layers=(2,)), [1]),
        ("llava", SparseVLM(keeps=(12, 8, 3), version="plus"), [12, 8, 3]),
        ("llava", SparseVLM(rank=(2.0, 1.0), recycle=False, layers=(3,)), None),
    ],
    ids=str,
)
def test_a_model_sees_what_was_counted(family: str, method: SparseVLM, left: list[int] | None) -> None:
    seen: list[Any] = []

    class Seen(SparseVLM):
        def decide(self, rows: Rows, counts: Any, memory: dict) -> Decision:
            decision = super().decide(rows, counts, memory)
            seen.append((memory.get("rank"), decision.alive.sum(dim=1)))
            return decision

    family_, model = EVERY[family], model_of(family)
    inputs = family_.inputs(model, scenario(family_, "single"))
    layers = method.schedule(model.config.text_config.num_hidden_layers)
    with torch.no_grad(), vtc.patched(model, Seen(**vars(method))):
        model(**inputs)
        trace = vtc.trace(model)
    if left is None:
        ((rank, alive),) = seen
        assert alive.tolist() == [min(int(rank) * 2 + 1, int(trace.original_tokens) - 1)]
        left = alive.tolist()
    assert [int(trace.tokens_per_layer[layer]) for layer in layers] == left
    (image,) = trace.images
    assert len(image.kept()) == left[-1]
    assert (image.merged_into() is not None) == method.merges


def test_the_trace_follows_tokens_that_move(monkeypatch: Any) -> None:
    """Beside each token a number is laid out: its place, a merged one's that of its centre."""
    numbers: list[Tensor] = []

    def numbered(hidden: Tensor, visual: Tensor, kept: Tensor, again: Recycling, packed: bool) -> Decision:
        number = numbers[-1] if numbers else torch.arange(hidden.shape[1]).float()[None, :, None]
        merged = torch.nn.functional.pad(number, (0, 0, 0, 1)).gather(1, again.centres[:, :, None])
        moved = laid_out(number, visual, kept, replace(again, merged=merged), packed)
        numbers.append(moved.hidden[:, (moved.alive | ~visual)[0]])
        return laid_out(hidden, visual, kept, again, packed)

    monkeypatch.setattr("vtc.prunes.attention.sparsevlm.laid_out", numbered)
    family, model = EVERY["llava_next"], model_of("llava_next")
    inputs = family.inputs(model, scenario(family, "several_images")[:1])
    with torch.no_grad(), vtc.patched(model, SparseVLM(keep=0.4)):
        model(**inputs)
        trace = vtc.trace(model)
    assert len(numbers) == 3
    for layer, number in zip((1, 2, 3), numbers):
        standing = set(number.flatten().int().tolist())
        for image in trace.images:
            places = image.source.positions
            assert set(places[image.kept(layer)].tolist()) == standing & set(places.tolist())
            into = image.merged_into(layer)
            assert into is not None and torch.isin(into[into >= 0], image.kept(layer)).all()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"version": "2"}, ValueError, "version='2' is not one of '1.5', 'plus'"),
        ({"recycle": 1}, TypeError, "recycle=1 is a int"),
        ({"rank": (1.0,)}, ValueError, r"rank=\(1.0,\) has 1 entries; give \(scale, bias\)"),
        ({"rank": (1.0, "a")}, TypeError, "holds a str"),
        ({"rank": (float("nan"), 0.0)}, ValueError, r"rank=\(nan, 0.0\) is not finite"),
        ({"rank": (1.0, 0.0), "keeps": (9, 8, 7)}, ValueError, "the rank decides"),
        ({"keeps": (9, 8)}, ValueError, r"give keeps with 3 entries"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SparseVLM(**fields)
    assert SparseVLM(version=1.5) == SparseVLM()  # type: ignore[arg-type]
