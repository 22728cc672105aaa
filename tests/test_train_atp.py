"""Learning ATP's thresholds: the soft forward is the patched model's, its gradient is right, a run can be resumed."""

import argparse
import json

import pytest
import torch
from contract import EVERY, model_of
from eval_runs import interrupted
from PIL import Image
from torch.testing import assert_close
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

import vtc
from vtc.eval import embedded
from vtc.eval.cli.errors import InputError
from vtc.eval.train.atp import command as train_atp
from vtc.eval.train.atp import compared
from vtc.eval.train.atp.compared import planned
from vtc.eval.train.atp.forward import SoftATP, Thresholds, soft_mask
from vtc.eval.train.instructions import instructions
from vtc.prunes.attention.atp import ATP, above, to_json

torch.set_num_threads(1)


# ---------------------------------------------------------------- the forward


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_masks_give_the_patched_models_logits_and_counts(share, loaded, two_questions, tmp_path):
    weights = Thresholds().weights.detach()
    weights[:, :, :2] += torch.linspace(-2, 2, 12).view(3, 2, 2)
    (tmp_path / "weights.json").write_text(json.dumps({"modules": to_json(weights)}))
    with torch.no_grad(), vtc.patched(loaded.model, ATP(keep=share, weights=str(tmp_path / "weights.json"))):
        expected = loaded.model(**two_questions).logits[:, -1]
        left = vtc.trace(loaded.model).tokens_per_layer
    answers = torch.tensor([[40, 41, 2], [42, 2, -100]])
    with torch.no_grad():
        logits, kept = SoftATP(loaded.model).run(two_questions, answers, torch.full((2,), share), weights)
    assert_close(logits[:, 0], expected, atol=2e-4, rtol=1e-4)
    assert_close(torch.stack(kept) * 256, left[[1, 4, 6]].float(), atol=1e-3, rtol=0)
    assert 0 < left[1].min() < 256 and left[4].min() < left[1].min()


def test_a_mask_is_hard_with_the_gradient_of_the_sigmoids():
    redundant = torch.tensor([[0.0, 0.02, 0.3, 1.0]])
    points = torch.tensor([[False, True, False, True]])
    for theta in ([[0.1, 0.2]], [[0.1, 0.3]], [[0.9, 0.26]]):
        theta = torch.tensor(theta, requires_grad=True)
        mask = soft_mask(redundant, points, theta)
        assert_close(mask, above(redundant, points, theta).float())
        mask.sum().backward()
        soft = torch.maximum(
            1 / (1 + (theta[:, :1] / redundant.clamp_min(1e-4)) ** 2),
            1 / (1 + (theta[:, 1:] / (0.25 * points).clamp_min(1e-4)) ** 2),
        )
        (expected,) = torch.autograd.grad(soft.sum(), theta)
        assert_close(theta.grad, expected)
        assert (expected <= 0).all() and (expected < 0).any()


def test_gradient_tells_what_a_token_that_is_gone_would_change(monkeypatch):
    """Held against differences, a mask moved a little off 0 or 1; loosely, for the norms compute in float32."""
    model = model_of("llava").double()
    try:
        soft = SoftATP(model)
        torch.manual_seed(0)
        ids = torch.tensor([[1, *[model.config.image_token_id] * 16, 20, 21]])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        given["pixel_values"] = torch.randn(1, 3, 16, 16).double()
        answers, weights = torch.tensor([[22, 23]]), torch.zeros(3, 2, 4)
        masks = [(torch.rand(1, 18 + 2) > 0.4).double().requires_grad_() for _ in range(3)]

        def loss(*masks):
            turn = iter(masks)
            monkeypatch.setattr("vtc.eval.train.atp.forward.soft_mask", lambda *_: next(turn))
            return soft.loss(given, answers, torch.ones(1), weights)[0]

        gradients = torch.autograd.grad(loss(*masks), masks)
        for which, place in ((0, 3), (0, 5), (1, 4), (2, 9), (2, 12)):
            slopes = []
            for size in (8e-3, 4e-3):
                moved = [mask.detach().clone() for mask in masks]
                step = size if moved[which][0, place] == 0 else -size
                moved[which][0, place] += step
                slopes.append((loss(*moved) - loss(*masks)).detach() / step)
            expected = 2 * slopes[1] - slopes[0]  # to second order
            assert_close(gradients[which][0, place], expected, rtol=1e-2, atol=1e-7)
        assert all(gradient.abs().max() > 1e-5 for gradient in gradients)
    finally:
        model.float().requires_grad_(True)


def test_answers_and_padding_do_not_decide(loaded, two_questions):
    """What stays is told from the prompt alone, and each row is as alone."""
    soft, weights = SoftATP(loaded.model), Thresholds().weights.detach()
    share = torch.tensor([0.3, 0.1])
    with torch.no_grad():
        _, short = soft.run(two_questions, torch.tensor([[40, 2], [41, 2]]), share, weights)
        logits, long = soft.run(two_questions, torch.tensor([[40, 41, 42, 2], [41, 2, -100, -100]]), share, weights)
        assert_close(short, long)
        for row in (0, 1):
            length = int(two_questions["attention_mask"][row].sum())
            alone = {name: value[row : row + 1] for name, value in two_questions.items()}
            alone |= {name: alone[name][:, -length:] for name in ("input_ids", "attention_mask")}
            found, kept = soft.run(alone, torch.tensor([[40 + row, 2]]), share[row : row + 1], weights)
            assert_close([each[0] for each in kept], [each[row] for each in long])
            assert_close(found[0, 0], logits[row, 0], atol=2e-4, rtol=1e-4)


# ---------------------------------------------------------------- the command


@pytest.fixture
def quick(monkeypatch):
    """A small comparison, and a checkpoint after every step."""
    monkeypatch.setattr(train_atp, "HELD_OUT", 2)
    monkeypatch.setattr(train_atp.Training, "save_seconds", 0.0)
    monkeypatch.setattr(compared, "KEEPS", (0.25,))
    monkeypatch.setattr(compared, "CALIBRATED_ON", 2)
    monkeypatch.setattr(compared, "CALIBRATION_STEPS", 3)


def command(folder, *more):
    parser = argparse.ArgumentParser()
    train_atp.add_arguments(parser)
    train_atp.main(parser.parse_args(["--output", str(folder), "--steps", "2", "--batch", "2", *more]))


def test_a_run_ends_with_weights_and_goes_on_where_it_was_killed(quick, tmp_path, capsys):
    command(tmp_path / "once")
    result, printed = json.loads((tmp_path / "once" / "comparison.json").read_text()), capsys.readouterr().out
    weights = json.loads((tmp_path / "once" / "thresholds.json").read_text())
    assert [row["step"] for row in result["curve"]] == [1, 2]
    assert weights["card"]["trained_by"]["seed"] == 0 and len(weights["modules"]) == 3
    assert ATP(weights=str(tmp_path / "once" / "thresholds.json")).adaptive
    names = [row["name"] for row in result["rows"]]
    assert names[:2] == ["untouched", "atp, keep=0.25"] and len(names) == 6
    assert all(name in printed and f"{row['equivalent']:.1f}" in printed for name, row in zip(names, result["rows"]))
    fixed = [row["equivalent"] for row in result["rows"] if row["name"].startswith(("atp_tf, as", "fastv"))]
    reached = max(result["rows"][1]["equivalent"], 2 * 256 / 8)  # FastV has two whole layers
    assert all(abs(each - reached) < 2 for each in fixed)

    with interrupted(train_atp.Training), pytest.raises(KeyboardInterrupt):
        command(tmp_path / "twice")
    (tmp_path / "twice" / "checkpoint.pt.tmp").write_bytes(b"torn")
    command(tmp_path / "twice", "--resume")
    assert "1 of 2 steps" in capsys.readouterr().err
    assert json.loads((tmp_path / "twice" / "thresholds.json").read_text()) == weights
    again = json.loads((tmp_path / "twice" / "comparison.json").read_text())
    assert again["curve"] == result["curve"]
    assert [(r["accuracy"], r["equivalent"]) for r in again["rows"]] == [
        (r["accuracy"], r["equivalent"]) for r in result["rows"]
    ]


@pytest.fixture
def tiny(tmp_path):
    """A folder of a random LLaVA with its processor, and a list of instructions with their pictures."""
    _, processor = embedded.load()
    config = EVERY["llava"].build().config
    text = {**config.text_config.to_dict(), "vocab_size": len(processor.tokenizer), "pad_token_id": 0}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=config.vision_config,
            text_config=text,
            image_token_index=processor.tokenizer.convert_tokens_to_ids(processor.image_token),
            image_seq_length=16,
        )
    )
    model.save_pretrained(tmp_path / "model")
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        processor.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
    ).save_pretrained(tmp_path / "model")
    entries = [{"conversations": [{"from": "human", "value": "is there a star"}, {"from": "gpt", "value": "no"}]}]
    for index, colour in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (20, 16), colour).save(tmp_path / f"{colour}.png")
        asked, answered = "<image>\nwhat colour is the picture", colour
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]
        entries.append({"id": str(index), "image": f"{colour}.png", "conversations": turns})
    (tmp_path / "list.json").write_text(json.dumps(entries))
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return tmp_path


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_a_llava_of_ones_own_learns_from_instructions(name, quick, tiny, capsys):
    command(tiny / "run", "--model", str(tiny / "model"), "--images", str(tiny / name))
    result = json.loads((tiny / "run" / "comparison.json").read_text())
    assert result["held_out"] == 1 and result["rows"][0]["tokens"] == 16
    questions, _ = train_atp.questions_of(tiny / name, 0, 0)
    assert questions.size == 2 and questions.get(0).text == "what colour is the picture"
    assert questions.get(0).answer == "red" and questions.get(0).shown()[0].size == (20, 16)


def test_equivalent_tokens_are_foretold(loaded, two_questions):
    for spec in ("fastv:keep=100", "transprune:keep=40", "atp_tf:keep=50"):
        with torch.no_grad(), vtc.patched(loaded.model, spec):
            loaded.model(**two_questions)
            assert planned(spec, 256, 8) == pytest.approx(float(vtc.trace(loaded.model).equivalent_tokens[0]))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--resume"], ["--resume", "holds no run"]),
        (["--model", "no/such/folder"], ["--model", "no/such/folder"]),
        (["--images", "no/such.json"], ["--images", "no/such.json"]),
        (["--device", "cuda:99"], ["--device", "cuda:99"]),
    ],
    ids=" ".join,
)
def test_bad_arguments_are_named_and_nothing_is_written(more, expected, tmp_path):
    with pytest.raises(InputError) as error:
        command(tmp_path / "run", *more)
    assert all(part in str(error.value) for part in expected)
    assert not (tmp_path / "run").exists()


TURNS = '[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "neither JSON nor JSONL"),
        ("[1, 2]", "entry 1 is a int"),
        ("[]", "holds 0 conversations"),
        (f'[{{"image": "a.png", "conversations": {TURNS}}}]', "holds 1 conversations"),
        ('[{"image": "a.png", "conversations": []}]', "entry 1"),
        ('[{"image": "a.png"}]', "entry 1"),
        (f'[{{"image": ["a.png"], "conversations": {TURNS}}}]', "entry 1"),
        (f'[{{"image": "a.png", "conversations": {TURNS.replace("gpt", "human")}}}]', "entry 1"),
        (f'[{{"image": "a.png", "conversations": {TURNS.replace(": 1", "").replace("a", "<image><image>", 1)}}}]',
         "entry 1"),
    ],
)  # fmt: skip
def test_bad_instructions_are_named(text, expected, tmp_path):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(InputError, match=expected):
        instructions(tmp_path / "list.json")


def test_models_that_can_not_be_learned_on_are_refused():
    with pytest.raises(ValueError, match="this is a vipllava"):
        SoftATP(EVERY["vipllava"].build())
    with pytest.raises(ValueError, match="its 2 decoder layers are too few"):
        SoftATP(EVERY["llava"].build(num_hidden_layers=2))
