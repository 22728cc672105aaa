"""The embedded benchmark is deterministic and held out, and the packaged model really answers it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from covering import REST

from vtc.eval import embedded
from vtc.eval.embedded import (
    assets,
    codes,
    data,
    gates,
    losses,
    model,
    packed,
    questions,
    samples,
    scenes,
    tokenizer,
)
from vtc.eval.train.embedded import command as train
from vtc.eval.train.embedded import stages


@pytest.fixture(scope="module")
def packaged():
    return embedded.load()


def test_importing_is_light():
    # `import vtc` may itself import torch; whatever it imports doesn't count here.
    code = (
        "import sys, vtc, vtc.eval; before = set(sys.modules)\n"
        "import vtc.eval.embedded\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'sklearn', 'skimage', 'matplotlib'}\n"
        "assert not (heavy - before) & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# The questions ------------------------------------------------------------------------------------------------------


def test_splits_share_no_digit_photograph_or_font():
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(sum(assets.digit_indices(first), ())) & set(sum(assets.digit_indices(second), ()))
        assert not set(assets.PHOTOGRAPHS[first]) & set(assets.PHOTOGRAPHS[second])
        assert not set(assets.FONTS[first]) & set(assets.FONTS[second])
    assert sum(len(sum(assets.digit_indices(s), ())) for s in embedded.SPLITS) == 1797


def test_scenes_use_only_what_their_split_owns():
    rng = np.random.default_rng(0)
    for split in embedded.SPLITS:
        own = set(sum(assets.digit_indices(split), ()))
        for _ in range(50):
            scene = scenes.draw_scene(rng, split)
            assert scene.split == split
            assert all(t.look in own for t in scene.things if t.kind == "card")
            assert all(
                t.look < len(assets.FONTS[split]) * len(assets.WORD_LOOKS[split])
                for t in scene.things
                if t.kind == "sign"
            )


def test_no_random_stream_is_shared():
    draws = [
        tuple(samples.generator(split, seed, index, purpose).integers(2**62, size=2))
        for split in embedded.SPLITS
        for seed in (0, 1)
        for index in range(200)
        for purpose in ("benchmark", "tower", "decoder", "joint", "final")
    ]
    assert len(set(draws)) == len(draws)


def test_a_sample_depends_only_on_split_seed_and_index():
    short, long = embedded.benchmark(10), embedded.benchmark(40)
    for i in (9, 0, 4):
        assert short[i] == long[i] == embedded.benchmark(10)[i]
        assert np.array_equal(np.asarray(short[i].image), np.asarray(long[i].image))
    assert short[0] != embedded.benchmark(10, seed=1)[0]
    assert short[0] != embedded.benchmark(10, split="validation")[0]


def test_benchmark_is_a_balanced_sequence_with_unique_ids():
    found = embedded.benchmark(45)
    assert len(found) == 45
    assert Counter(s.group for s in found) == dict.fromkeys(embedded.GROUPS, 5)
    assert len({s.id for s in found}) == 45
    assert found[-1] == found[44]
    assert [s.id for s in found[2:4]] == ["test-0-2", "test-0-3"]
    with pytest.raises(IndexError, match="45"):
        found[45]


def test_pictures_and_choices_have_the_promised_form():
    for sample in embedded.benchmark(18):
        assert sample.image.size == (224, 224)
        assert sample.image.mode == "RGB"
        assert (sample.choices is not None) == (sample.group == "choice")
        if sample.choices:
            assert len(sample.choices) == 4
            assert sample.answer in "ABCD"


@pytest.mark.parametrize("group", embedded.GROUPS)
def test_no_answer_dominates_its_group(group):
    rng = np.random.default_rng(5)
    asked = [questions.ask(scenes.draw_scene(rng, "test"), group, rng) for _ in range(1500)]
    answers = Counter(a.answer for a in asked if a is not None)
    assert max(answers.values()) / answers.total() < {"existence": 0.56, "count": 0.42}.get(group, 0.35)


def test_absent_pairs_are_adversarial():
    rng, seen = np.random.default_rng(1), 0
    while seen < 50:
        scene = scenes.draw_scene(rng, "test")
        asked = questions.ask(scene, "existence", rng)
        if asked is None:
            continue
        *colour, kind = asked.question.removeprefix("Is there a ").removesuffix(" in the picture?").split()
        there = {(t.colour, t.kind) for t in scene.things} if colour else {(t.kind,) for t in scene.things}
        assert ((*colour, kind) in there) == (asked.answer == "yes")
        if colour and asked.answer == "no":
            seen += 1
            assert colour[0] in {t.colour for t in scene.things}
            assert kind in {t.kind for t in scene.things}


def test_things_touch_a_minority_of_the_patches():
    rng = np.random.default_rng(2)
    shares = [(codes.patch_labels(scenes.draw_scene(rng, "test"))[:, 0] >= codes.FOREGROUND).mean() for _ in range(100)]
    assert np.mean(shares) < 0.2
    assert max(shares) < 0.35


@pytest.mark.parametrize(
    ("said", "right"), [("red", True), (" Red. ", True), ("blue", False), ("red red", False), ("", False)]
)
def test_is_correct_ignores_case_and_punctuation(said, right):
    assert embedded.is_correct(said, SimpleNamespace(answer="red")) is right


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"n": -1}, ValueError, "n=-1"),
        ({"n": 2.5}, TypeError, "n=2.5"),
        ({"n": True}, TypeError, "n=True"),
        ({"n": 1, "seed": -3}, ValueError, "seed=-3"),
        ({"n": 1, "split": "tset"}, ValueError, "split='tset'.*train, validation, test"),
    ],
)
def test_bad_arguments_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        embedded.benchmark(**arguments)


# The tokenizer and the packed forward -------------------------------------------------------------------------------


def test_every_question_is_in_the_vocabulary():
    words = tokenizer.build_tokenizer()
    for sample in embedded.benchmark(90):
        assert words.unk_token_id not in words(f"{sample.question} {sample.answer}").input_ids
        assert embedded.is_correct(words.decode(words(sample.answer).input_ids, skip_special_tokens=True), sample)


def test_packed_questions_get_the_logits_of_questions_asked_alone():
    torch.manual_seed(0)
    fresh = model.build_model()
    with torch.no_grad():
        for name, weight in fresh.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.normal_(0, 0.05)
    decoder = fresh.model.language_model
    scene = data.draw_batch("train", 0, 0, 1, "test")
    asked = data.pack_batch(scene)
    visual = torch.randn(1, 12, model.WIDTH)
    front = decoder.embed_tokens(torch.tensor([data.prefix_ids()]))
    prefix = torch.cat((front, visual), dim=1)
    positions = torch.cat((torch.arange(14)[None], asked.position + 14), dim=1)
    bias = packed.question_bias(asked.block, data.CHUNK, prefix)
    hidden = packed.packed_hidden(decoder, prefix, decoder.embed_tokens(asked.ids), positions, bias)
    blocks = asked.block[asked.group >= 0].unique()
    assert len(blocks) > 10
    for block in blocks[[0, 3, -1]]:
        rows = asked.block[0] == block
        alone = decoder(inputs_embeds=torch.cat((prefix, decoder.embed_tokens(asked.ids[:, rows])), dim=1))
        torch.testing.assert_close(alone.last_hidden_state[0, 14:], hidden[0, rows], atol=2e-5, rtol=1e-4)


def test_training_pixels_equal_the_processors():
    scene = data.draw_batch("train", 0, 7, 1, "test")
    sample_image = data.render(scene[0])
    wanted = tokenizer.build_processor().image_processor(sample_image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(data.pixel_batch(scene), wanted, atol=1e-4, rtol=1e-4)


def test_losses_reach_every_part_that_is_used():
    torch.manual_seed(0)
    fresh, heads = model.build_model(), losses.Heads(model.WIDTH)
    scene = data.draw_batch("train", 0, 0, 2, "test")
    pixels, labels = data.pixel_batch(scene), data.label_batch(scene)
    features, visual, cls = losses.see(fresh, pixels)
    assert visual.shape == (2, 256, model.WIDTH)
    answers, report = losses.answer_loss(fresh, visual, data.pack_batch(scene))
    assert sum(asked for _, asked in report.values()) > 20
    (answers + losses.dense_loss(heads, features, cls, labels, pixels)[0]).backward()
    assert fresh.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in heads.parameters())


@REST
@pytest.mark.parametrize("teaches", ["decoder", "model"])
def test_interrupted_training_ends_with_the_same_weights(teaches, tmp_path):
    stage = stages.EmbeddedStage("tiny", (), 2, 2, 1e-3, 1e-3, teaches=teaches, dense=0.1, words=0.1, visual=(48,))
    for folder, steps in (("once", (2,)), ("twice", (1, 2))):
        (tmp_path / folder).mkdir()
        for last in steps:
            train.Trainer(stage, tmp_path / folder, "cpu", 0, 1, last).run()
    once, twice = (torch.load(tmp_path / f / "tiny.pt")["optimizer"]["master"] for f in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--stages", "tower,jiont"], "'jiont'.*joint, final"), (["--scale", "0"], "scale=0.0")],
)
def test_bad_training_arguments_are_named(arguments, text, tmp_path):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    with pytest.raises(ValueError, match=text):
        train.main(parser.parse_args(["--output", str(tmp_path / "run"), *arguments]))
    assert not (tmp_path / "run").exists()


def test_a_stage_without_its_predecessor_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'final' starts from .*joint\.pt"):
        train.Trainer(stages.STAGES[-1], tmp_path, "cpu", 0, 1, 1)


# The packaged model -------------------------------------------------------------------------------------------------


def test_packaged_files_are_small_enough():
    assert sum(f.stat().st_size for f in embedded.path().iterdir()) <= 16e6


def test_packaged_model_is_an_ordinary_llava(packaged):
    network, processor = packaged
    assert type(network).__name__ == "LlavaForConditionalGeneration"
    assert not network.training
    assert network.dtype == torch.float32
    assert sum(p.numel() for p in network.parameters()) < 7.5e6
    sample = embedded.benchmark(1)[0]
    text = embedded.prompt(processor, sample.question)
    assert text.count("<image>") == 1
    inputs = processor(images=sample.image, text=text, return_tensors="pt")
    assert (inputs["input_ids"] == network.config.image_token_id).sum() == 256


def test_packaged_model_loads_in_other_types_and_attentions():
    network, _ = embedded.load(dtype=torch.bfloat16, attn_implementation="eager")
    assert network.dtype == torch.bfloat16
    assert network.config.text_config._attn_implementation == "eager"


def test_packaged_model_answers_far_better_with_the_picture_than_without(packaged):
    asked = 36
    found = list(embedded.benchmark(asked, seed=7))
    seeing, blind = (
        sum(
            embedded.is_correct(said, sample)
            for sample, said in zip(found, gates.answer(*packaged, found, blank), strict=True)
        )
        for blank in (False, True)
    )
    assert seeing >= 0.85 * asked
    assert seeing - blind >= 0.5 * asked


def test_wilson_interval_matches_the_textbook():
    low, high = gates.wilson(90, 100)
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)


def test_gates_refuse_too_few_questions():
    with pytest.raises(ValueError, match="n=8 must be at least 9"):
        gates.measure(8)


def test_shipped_figures_pass_the_gates():
    figures = json.loads((embedded.path() / "gates.json").read_text())
    assert figures["passed"]
    assert figures["questions"] >= gates.ENOUGH
    assert set(figures["groups"]) == set(embedded.GROUPS)
    readme = (embedded.path().parent / "README.md").read_text()
    assert gates.table(figures) in readme


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    ink, labels = assets._digits()
    assert np.array_equal(ink, theirs.images / 16) and np.array_equal(labels, theirs.target)


def test_a_package_that_is_missing_is_named_with_the_way_to_it():
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package is not installed.*pip install"):
        assets._package_file("no_such_package", "a.png")
