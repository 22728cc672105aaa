"""Learning DiffRate's counts: the soft forward is the patched model's, its gradient is right, a run can be resumed."""

import json

import pytest
import torch
from contract import EVERY
from covering import REST
from eval_runs import interrupted
from tiny_base import clip, siglip
from torch.testing import assert_close
from transformers import LlavaConfig, LlavaForConditionalGeneration

import vtc
from vtc.eval.cli import main
from vtc.eval.train.diffrate import command as train_diffrate
from vtc.eval.train.diffrate import forward
from vtc.eval.train.diffrate.command import method_of
from vtc.eval.train.diffrate.forward import (
    Rate,
    Rates,
    SoftLlava,
    _Rows,
    fixed_schedule,
    patches_kept,
)

PATCHES = 256


# ---------------------------------------------------------------- the forward


SCHEDULES = {
    "untouched": ((256,) * 5, (256,) * 5),
    "prune": ((256, 201, 120, 120, 33), (256, 201, 120, 120, 33)),
    "merge": ((256, 256, 180, 120, 61), (256, 180, 120, 61, 30)),
    "both": ((256, 200, 150, 101, 60), (240, 180, 120, 101, 40)),
    "in the first block": ((100,) * 5, (50,) * 5),
}


@pytest.mark.parametrize(("prune", "merge"), SCHEDULES.values(), ids=SCHEDULES)
def test_hard_masks_give_the_patched_models_logits_and_flops(prune, merge, loaded, two_questions):
    soft, answers = SoftLlava(loaded.model), torch.tensor([[40, 41, 2], [42, 43, 2]])
    schedule = fixed_schedule(PATCHES, prune, merge)
    whole = dict(two_questions, input_ids=torch.cat([two_questions["input_ids"], answers[:, :-1]], dim=1))
    whole["attention_mask"] = torch.cat([two_questions["attention_mask"], torch.ones_like(answers[:, :-1])], dim=1)
    with torch.no_grad(), vtc.patched(loaded.model, method_of(prune, merge, PATCHES)):
        expected = loaded.model(**whole).logits[:, -3:]
        cost = vtc.trace(loaded.model).flops()
    with torch.no_grad():
        found = soft.logits(two_questions, answers, schedule)
    assert_close(found, expected, atol=2e-4, rtol=1e-4)
    text = (whole["attention_mask"].sum(dim=1) - PATCHES).tolist()
    assert_close(sum(float(soft.flops(schedule, t)) for t in text), float(cost.total), rtol=1e-9, atol=0)
    assert_close(sum(float(soft.flops((), t)) for t in text), float(cost.unpatched_total), rtol=1e-9, atol=0)


def test_padding_of_answers_changes_nothing(loaded, two_questions):
    soft, schedule = SoftLlava(loaded.model), fixed_schedule(PATCHES, (256, 99, 50, 50, 50), (256, 80, 40, 40, 40))
    with torch.no_grad():
        ragged = soft.loss(two_questions, torch.tensor([[40, 2, -100], [41, 42, 2]]), schedule)
        pictures = [{name: value[row : row + 1] for name, value in two_questions.items()} for row in (0, 1)]
        first = soft.loss(pictures[0], torch.tensor([[40, 2]]), schedule)
        second = soft.loss(pictures[1], torch.tensor([[41, 42, 2]]), schedule)
    assert_close(ragged, (2 * first + 3 * second) / 5, atol=1e-4, rtol=1e-4)


def test_a_row_that_is_gone_is_seen_by_itself_alone():
    rows = _Rows.start(torch.zeros(1, 4, 2))
    rows.prune(Rate.fixed(3, 1))
    bias = rows.bias()[0, 0]
    seen = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
    assert (bias[seen] == 0).all()
    assert (bias[~seen] < -20).all()


def test_gradient_tells_what_a_row_that_is_gone_would_change(monkeypatch):
    """Held against differences, a mask moved a little off 0 or 1; loosely, for the norms compute in float32."""
    model = EVERY["llava"].build().double()
    soft, patches = SoftLlava(model), 16
    torch.manual_seed(0)
    ids = torch.tensor([[1, *[model.config.image_token_id] * patches, 20, 21]])
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 16, 16).double(),
    }
    answers = torch.tensor([[22, 23]])

    def as_given(probability, kept, before=None, present=None):
        return torch.where(torch.arange(len(probability)) < present, probability, 1.0)

    monkeypatch.setattr(forward, "token_mask", as_given)

    def loss(*masks):
        whole = Rate.fixed(patches, patches)
        first, second = (Rate(torch.tensor(count + 1.0), mask) for count, mask in zip((12, 9), masks))
        schedule = [(whole, whole), (first, second), *[(Rate.fixed(patches, 9),) * 2] * (soft.blocks - 2)]
        return soft.loss(given, answers, schedule)

    masks = [(torch.arange(patches + 1) <= count).double().requires_grad_() for count in (12, 9)]
    gradients = torch.autograd.grad(loss(*masks), masks)
    for which, rank in ((0, 14), (0, 5), (1, 11), (1, 2)):
        moved = [mask.detach().clone() for mask in masks]
        step = 1e-3 if moved[which][rank] == 0 else -1e-3
        moved[which][rank] += step
        difference = (loss(*moved) - loss(*masks)) / step
        assert difference.abs() > 1e-5
        assert_close(gradients[which][rank], difference.detach(), rtol=1e-2, atol=1e-7)


# ---------------------------------------------------------------- what is learned


def test_first_block_is_whole_and_counts_fall():
    rates = Rates(4, 16, 4)
    with torch.no_grad():
        rates.prune.copy_(torch.tensor([[0.0, 0, 9, 0], [9.0, 0, 0, 0], [0, 0, 9, 0]]))
        rates.merge.copy_(torch.tensor([[9.0, 0, 0, 0], [0.0, 9, 0, 0], [0, 0, 0, 9]]))
    prune, merge = patches_kept(rates())
    assert prune == [16, 9, 9, 9]  # 8 and a little, rounded up
    assert merge == [16, 9, 9, 5]


@pytest.mark.parametrize("target", [0.3, 0.7])
def test_flops_of_the_counts_lead_to_the_target(target, loaded):
    soft, rates = SoftLlava(loaded.model), Rates(5, PATCHES, 4)
    optimizer = torch.optim.AdamW(rates.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        (soft.share(rates(), 12.0) - target).square().backward()
        optimizer.step()
    assert abs(float(soft.share(fixed_schedule(PATCHES, *patches_kept(rates())), 12.0)) - target) < 0.02


@pytest.mark.parametrize("patches", [16, 196, 256, 576, 577])
def test_shares_give_exactly_the_counts(patches):
    for count in range(1, patches + 1):
        method = vtc.spec.parse(vtc.spec.to_string([method_of((patches, count), (patches, count), patches)]))[0]
        assert method.count(patches) == count
        assert method.counts(1, 2, patches, 1) == (count, 1)
        assert method.counts(0, 2, patches, 1) == (patches, patches)


# ---------------------------------------------------------------- the command


@pytest.fixture
def quick(monkeypatch):
    """A small comparison, and a checkpoint after every step."""
    monkeypatch.setattr(train_diffrate, "HELD_OUT", 2)
    monkeypatch.setattr(train_diffrate.Training, "save_seconds", 0.0)


def command(folder, *more):
    return main(["train-diffrate", "--output", str(folder), "--steps", "2", "--batch", "2", *more])


@REST
def test_a_run_ends_with_a_spec_and_goes_on_where_it_was_killed(quick, tmp_path, capsys, loaded):
    assert command(tmp_path / "once") == 0
    result, printed = json.loads((tmp_path / "once" / "schedule.json").read_text()), capsys.readouterr().out
    (method,) = vtc.spec.parse(result["spec"])
    assert f"spec: {result['spec']}\n" in printed and result["spec"].startswith("diffrate:keep=")
    prune, merge = result["prune"]["counts"], result["merge"]["counts"]
    assert prune[0] == merge[0] == PATCHES
    for stage in range(5):
        assert method.counts(stage, 5, PATCHES, method.count(PATCHES)) == (prune[stage], merge[stage])
    assert [row["step"] for row in result["curve"]] == [1, 2]
    assert [row["name"] for row in result["comparison"]["rows"]][::3] == ["learned", "untouched"]
    assert all(row["name"] in printed for row in result["comparison"]["rows"])
    assert result["comparison"]["rows"][0]["flops_share"] == pytest.approx(result["flops_share"], abs=0.02)

    with interrupted(train_diffrate.Training):
        assert command(tmp_path / "twice") == 130
    (tmp_path / "twice" / "checkpoint.pt.tmp").write_bytes(b"torn")
    assert command(tmp_path / "twice", "--resume") == 0
    assert "1 of 2 steps" in capsys.readouterr().err
    assert json.loads((tmp_path / "twice" / "schedule.json").read_text()) == result


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--target", "1"], ["--target", "'1'", "between 0 and 1"]),
        (["--target", "0"], ["--target", "'0'"]),
        (["--target", "half"], ["--target", "'half'"]),
        (["--target", "0.05"], ["--target", "0.05", "out of reach"]),
        (["--steps", "0"], ["--steps", "'0'"]),
        (["--resume"], ["--resume", "holds no run"]),
        (["--model", "no/such/folder"], ["--model", "no/such/folder"]),
    ],
    ids=" ".join,
)
def test_bad_arguments_are_named_and_nothing_is_written(more, expected, tmp_path, capsys):
    try:
        code = command(tmp_path / "run", *more)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and "Traceback" not in error
    assert all(part in error for part in expected)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"command": "train-diffrate", "model": "embedded", "target": 0.4}))
    assert command(tmp_path) == 2
    assert "holds another run" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json"]


def tiny(tower, **more):
    text = EVERY["llava"].build().config.text_config
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=tower, text_config=text, **more))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (lambda: tiny(siglip(), vision_feature_select_strategy="full"), "siglip_vision_model.*no CLS.*CLIP tower"),
        (lambda: EVERY["vipllava"].build(), "this is a vipllava"),
        (lambda: tiny(clip(), vision_feature_layer=[-1, -2]), "patches of one"),
        (lambda: tiny(clip(), vision_feature_layer=1), "never compressed"),
    ],
    ids=["no CLS", "another family", "several blocks", "one block"],
)
def test_models_that_can_not_be_learned_on_are_refused(model, text):
    with pytest.raises(ValueError, match=text):
        SoftLlava(model())
