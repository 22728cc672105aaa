"""The clip benchmark and the model that answers it."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from covering import REST
from transformers import AutoModelForImageTextToText

from vtc.eval import clips, embedded
from vtc.eval.clips import data
from vtc.eval.clips.model import see
from vtc.eval.clips.processor import VIDEO
from vtc.eval.clips.questions import ask
from vtc.eval.clips.render import STATES, cell_states, render
from vtc.eval.clips.samples import make_sample
from vtc.eval.clips.scenes import FRAMES, MOTIONS, VISITS, Clip, draw_clip
from vtc.eval.embedded.samples import generator
from vtc.eval.train.clips.command import clip_loss, export_checkpoint, main
from vtc.eval.train.clips.stages import STAGES

torch.set_num_threads(1)


def many(count: int, split: str = "test") -> list[Clip]:
    return [draw_clip(generator(split, 3, index, "a test"), split) for index in range(count)]


def test_a_question_depends_on_its_number_alone():
    short, long = clips.benchmark(6), clips.benchmark(600)
    assert [short[i] for i in range(6)] == [long[i] for i in range(6)]
    assert np.array_equal(short[4].frames, long[4].frames)
    assert short[0] != clips.benchmark(6, seed=1)[0] and short[0] != clips.benchmark(6, "validation")[0]
    assert [sample.group for sample in long[:12]] == [*clips.GROUPS, *clips.GROUPS]
    assert short[0].frames.shape == (FRAMES, 224, 224, 3) and short[0].frames.dtype == np.uint8
    with pytest.raises(ValueError, match="split='tset'"):
        clips.benchmark(3, "tset")


@pytest.mark.parametrize("times", [2, 4])
def test_longer_clips_are_the_same_ones_seen_more_often(times):
    """Every so many frames one of the short clip, but for its noise of ±6; between them things move on."""
    for short, long in zip(clips.benchmark(12), clips.benchmark(12, frames=times * FRAMES)):
        assert short == long and len(long.frames) == times * FRAMES
        apart = long.frames[::times].astype(int) - short.frames
        assert np.abs(apart).max() <= 12
    clip = next(clip for clip in many(50) if any(actor.motion for actor in clip.actors))
    (actor, *_) = (actor for actor in clip.actors if actor.motion)
    places = [actor.at(frame / times) for frame in range(times * FRAMES)]
    steps = np.abs(np.diff([(thing.x, thing.y) for thing in places], axis=0)).sum(axis=1)
    moving = times * (FRAMES - 1)
    assert (np.abs(steps[:moving] - actor.step / times) <= 1).all() and not steps[moving:].any()


def test_of_longer_clips_the_model_is_told_positions_in_proportion():
    (short, _), (same, _), (long, _) = clips.load(), clips.load(frames=FRAMES // 2), clips.load(frames=4 * FRAMES)
    turns = [model.model.language_model.rotary_emb.inv_freq for model in (short, same, long)]
    assert torch.equal(turns[0], turns[1])
    torch.testing.assert_close(turns[2], turns[0] / 4)
    weights = long.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in short.state_dict().items())


def test_things_never_meet_nor_leave_the_picture():
    for clip in many(150):
        assert len({actor.thing.kind for actor in clip.actors}) == len(clip.actors)
        for frame in range(FRAMES):
            things = clip.scene(frame).things
            for index, thing in enumerate(things):
                half = thing.width / 2
                assert half <= thing.x <= 224 - half and half <= thing.y <= 224 - half
                for other in things[:index]:
                    far = (thing.width + other.width) / 2
                    assert abs(thing.x - other.x) > far or abs(thing.y - other.y) > far


def test_only_what_is_said_to_move_moves_in_the_pixels():
    for clip in many(12):
        frames, states = render(clip).astype(int), cell_states(clip).reshape(FRAMES, 8, 8)
        for first in range(FRAMES - 1):
            changed = np.abs(frames[first + 1] - frames[first]).max(axis=-1) > 40  # noise is at most 12
            cells = changed.reshape(8, 28, 8, 28).any(axis=(1, 3))
            calm = (states[first] == 0) & (states[first + 1] == 0)
            around = np.pad(~calm, 1)
            near = np.stack([around[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]).any(axis=0)
            assert not (cells & ~near).any()
        assert {STATES[i] for i in np.unique(states)} <= set(STATES)


def told(clip: Clip, question: str) -> str:
    """The answer to a question, worked out from where things are in each frame."""
    words = question.lower().replace("?", "").replace(",", "").split()
    there = {a.thing.kind: [f for f in range(FRAMES) if a.at(f) is not None] for a in clip.actors}
    places = {a.thing.kind: [(t.x, t.y) for f in range(FRAMES) if (t := a.at(f)) is not None] for a in clip.actors}
    moving = [kind for kind, seen in places.items() if len(set(seen)) > 1]
    kinds = [word for word in words if word in there]
    if words[:2] == ["what", "moves"]:
        return moving[0]
    if words[:2] == ["how", "many"]:
        return str(len(moving))
    if words[:2] == ["what", "colour"]:
        return next(a.thing.colour for a in clip.actors if a.thing.kind == moving[0])
    if words[0] == "where":
        (x0, y0), (x1, y1) = (places[kinds[0] if kinds else moving[0]][i] for i in (0, -1))
        if abs(x1 - x0) > abs(y1 - y0):
            return "right" if x1 > x0 else "left"
        return "down" if y1 > y0 else "up"
    if words[0] == "when":
        middle = sum(there[kinds[0]]) / len(there[kinds[0]])
        return min(VISITS, key=lambda name: abs({"start": 0, "middle": 3.5, "end": 7}[name] - middle))
    assert words[0] == "which"
    return sorted(kinds, key=lambda kind: there[kind][0])[0 if words[2] == "first" else -1]


def test_answers_are_right_and_no_group_is_answered_without_looking():
    answers: dict[str, Counter] = {group: Counter() for group in clips.GROUPS}
    rng = np.random.default_rng(0)
    ids = data._core().get_vocab()
    for clip in many(1500):
        for group in clips.GROUPS:
            asked = ask(clip, group, rng)
            if asked is not None:
                assert told(clip, asked.question) == asked.answer, (asked, clip)
                answers[group][asked.answer] += 1
                encoded = data._core().encode(f"{asked.question} {asked.answer}", add_special_tokens=False)
                assert ids["<unk>"] not in encoded.ids
    most = {"moved": 0.25, "direction": 0.32, "count": 0.45, "colour": 0.2, "order": 0.25, "when": 0.42}
    for group, limit in most.items():
        total = sum(answers[group].values())
        assert total > 250 and max(answers[group].values()) / total < limit, (group, answers[group])
    assert set(answers["direction"]) == set(MOTIONS)


def test_the_processor_makes_what_transformers_makes_of_single_frames():
    processor = clips.load()[1]
    sample = make_sample("test", 0, 1)
    inputs = processor(videos=[sample.frames], text=[clips.prompt(processor, sample.question)])
    assert inputs["pixel_values_videos"].shape == (1, FRAMES, 3, 224, 224)
    _, pictures = embedded.load()
    alone = pictures.image_processor(sample.frames[3], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(inputs["pixel_values_videos"][0, 3], alone)
    (video,) = processor.tokenizer.convert_tokens_to_ids([VIDEO])
    assert (inputs["input_ids"] == video).sum() == FRAMES * 64 + 1
    torch.testing.assert_close(data.pixels([data.clip(0)])[0, 2], _one(processor, data.clip(0), 2), atol=1e-5, rtol=0)


def _one(processor, clip: Clip, frame: int) -> torch.Tensor:
    return processor.image_processor(render(clip)[frame], return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize(
    ("videos", "text", "said"),
    [
        (0, "nothing to see", None),
        (1, "no placeholder", "text has 0 <video>"),
        (1, "<video> <video>", "holds 1 videos, but text has 2"),
        (2, ["<video> a", "<video> b"], r"\[8, 4\] frames"),
    ],
)
def test_videos_and_placeholders_have_to_match(videos, text, said):
    processor = clips.load()[1]
    shown = [np.zeros((count, 20, 30, 3), np.uint8) for count in (8, 4)[:videos]]
    if said is None:
        assert set(processor(text=text)) == {"input_ids", "attention_mask"}
        return
    with pytest.raises(ValueError, match=said):
        processor(videos=shown, text=text, padding=True)


def test_the_model_loads_as_any_other_and_answers():
    model = AutoModelForImageTextToText.from_pretrained(clips.path())
    assert type(model).__name__ == "LlavaOnevisionForConditionalGeneration"
    model, processor = clips.load()
    samples = clips.benchmark(6, "validation")[:]
    inputs = processor(
        videos=[sample.frames for sample in samples],
        text=[clips.prompt(processor, sample.question) for sample in samples],
        padding=True,
    )
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    said = processor.batch_decode(made, skip_special_tokens=True)
    assert sum(map(clips.is_correct, said, samples)) >= 5


@REST
def test_packed_questions_get_the_loss_of_questions_asked_alone():
    model, _ = clips.load()
    shown = [data.clip(5)]
    visual = see(model, data.pixels(shown))
    questions = data.pack_batch(shown, 0, 0.0)
    heads = torch.nn.ModuleDict({"motion": torch.nn.Linear(192, 6), "frame": torch.nn.Linear(192, 8)})
    with torch.no_grad():
        loss, report = clip_loss(model, heads, visual, data.labels(shown), questions, STAGES[-1])
        losses = []
        ids = [1, 5, *[model.config.video_token_id] * (FRAMES * 64 + 1)]
        for block in questions.block[0][questions.group[0] >= 0].unique():
            own = (questions.block[0] == block) & (questions.ids[0] > 0)
            sequence = torch.tensor([ids + questions.ids[0, own].tolist()])
            logits = model(input_ids=sequence, pixel_values_videos=data.pixels(shown)).logits[0, -int(own.sum()) :]
            wanted, answers = questions.target[0, own], questions.group[0, own] >= 0
            losses += torch.nn.functional.cross_entropy(logits[answers], wanted[answers], reduction="none").tolist()
    assert sum(asked for _, asked in report.values()) > 2
    assert float(loss) == pytest.approx(sum(losses) / len(losses), rel=1e-3, abs=1e-5)


@REST
def test_training_runs_stops_and_goes_on(tmp_path):
    """A dry run of all stages on a few clips; done again it does nothing more."""
    import argparse

    args = argparse.Namespace(output=tmp_path, stages="features,motion,answers,final", clips=8, scale=0.002)
    main(args)
    curve = (tmp_path / "curve.jsonl").read_text()
    assert {json.loads(line)["stage"] for line in curve.splitlines()} == {"motion", "answers", "final"}
    main(args)
    assert (tmp_path / "curve.jsonl").read_text() == curve
    export_checkpoint(tmp_path, "motion", tmp_path / "other")
    assert (tmp_path / "other" / "model.safetensors").stat().st_size == (
        clips.path() / "model.safetensors"
    ).stat().st_size
    for field, value in (("stages", "fnial"), ("clips", 0), ("scale", 0.0)):
        with pytest.raises(ValueError, match=field):
            main(argparse.Namespace(**{**vars(args), field: value}))


def test_the_weights_of_the_package_are_small_and_passed_their_gates():
    total = sum(file.stat().st_size for package in (clips, embedded) for file in package.path().iterdir())
    assert total <= 32e6
    gates = json.loads((clips.path() / "gates.json").read_text())
    assert gates["questions"] >= 2000 and gates["split"] == "test" and gates["passed"]
    assert gates["overall"]["accuracy"] >= 0.85 and set(gates["groups"]) == set(clips.GROUPS)
    assert all(row["above_blind"] >= 0.25 for row in gates["groups"].values())
