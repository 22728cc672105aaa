"""Comparisons: both answers token by token, what they cost, and what was kept, as the model itself has it."""

import itertools

import numpy as np
import pytest
import torch
from demo_server import PATIENT, arguments, items
from tiny_checkpoints import checkpoint

import vtc
from vtc.demo import reproduce
from vtc.demo.jobs import comparison as comparing
from vtc.demo.service import Service
from vtc.demo.view import html as showing
from vtc.eval.cli.errors import InputError


def test_answers_come_token_by_token_then_times_of_the_same_rounds(service):
    media, question = service.open_example("images/6")
    found = items(service.compare("a", media, question, ["divprune:keep=0.25", "none"]))
    kinds = [type(item).__name__ for item in found]
    assert kinds.index("Answered") > 0 and kinds[-1] == "Timed" and kinds.count("Answered") == 2
    for side in (0, 1):
        heard = [item.text for item in found if isinstance(item, comparing.Heard) and item.side == side]
        (answer,) = (item.answer for item in found if isinstance(item, comparing.Answered) and item.side == side)
        assert len(heard) == answer.ids.shape[1] and heard[-1] == answer.text
        assert all(later.startswith(former) for former, later in itertools.pairwise(heard))
    timings = found[-1].timings
    assert len(timings[0]) == len(timings[1]) >= 1


def test_each_side_says_what_the_patched_model_says_and_the_model_is_given_back(service, loaded):
    media, question = service.open_example("images/5")
    specs = ["divprune:keep=0.125", "fastv:keep=0.25", "none"]
    inputs = loaded.inputs([[media.shown]], [question])
    for text in specs:
        with vtc.patched(loaded.model, text):
            ids = loaded.model.generate(**inputs, max_new_tokens=64, do_sample=False)
            trace = vtc.trace(loaded.model)
        found = items(service.compare("a", media, question, [text, "none"]))
        answer = next(item.answer for item in found if isinstance(item, comparing.Answered))
        assert torch.equal(answer.ids, ids[:, inputs["input_ids"].shape[1] :])
        costs = comparing.numbers(answer, [])
        assert costs.equivalent_tokens == float(trace.equivalent_tokens[0])
        assert costs.kept_tokens == int(trace.tokens_per_layer[-1, 0]) and costs.flops == trace.flops().total
        for layer in (0, 3, len(trace.tokens_per_layer) - 1):
            assert answer.views[0].kept(layer) == int(trace.tokens_per_layer[layer, 0])
    assert not hasattr(service.models.of("image").model, "_vtc_seam")


def test_the_picture_shows_in_each_layer_the_tokens_that_are_alive_there(service):
    """Patch by patch: what is alive is as bright as the picture, all else is darker."""
    media, question = service.open_example("images/5")
    found = items(service.compare("a", media, question, ["fastv:layer=3,keep=0.25", "none"]))
    (view,) = next(item.answer for item in found if isinstance(item, comparing.Answered)).views
    whole = np.asarray(view.picture).astype(int)
    for layer in (0, 2, 3, 7):
        drawn = np.asarray(view.marked(layer)).astype(int)
        alive = set(view.trace.kept(layer).tolist())
        assert len(alive) == (256 if layer < 3 else 64)
        for token in range(256):
            rows, columns = (slice(28 * place, 28 * place + 28) for place in divmod(token, 16))
            same = np.array_equal(drawn[rows, columns], whole[rows, columns])
            assert same == (token in alive)


def test_a_setting_that_is_refused_leaves_the_other_side_alone(service):
    media, question = service.open_example("images/5")
    found = items(service.compare("a", media, question, ["fastv:layer=99", "none"]))
    (refused,) = (item for item in found if isinstance(item, comparing.Refused))
    assert refused.side == 0 and "99" in refused.reason
    assert [item.side for item in found if isinstance(item, comparing.Answered)] == [1]
    assert list(found[-1].timings) == [1]


@pytest.mark.parametrize(
    "media, question, specs, message",
    [
        ("images/five", "What?", ["none", "none"], "example 'images/five' does not exist"),
        ("upload:nonsense", "What?", ["none", "none"], "this upload was not looked at for long and is gone"),
        ("images/0", "  ", ["none", "none"], "question is empty"),
        ("images/0", "a" * 501, ["none", "none"], "question has 501 characters"),
        ("images/0", "What?", ["none", "divprun"], "B: unknown method 'divprun'"),
        ("images/0", "What is <image>?", ["none", "none"], "can't be asked"),
    ],
)
def test_what_can_t_be_asked_is_told_before_anything_runs(service, media, question, specs, message):
    with pytest.raises(InputError, match=message):
        items(service.compare("a", service.media(media), question, specs))


def test_a_video_has_a_view_for_each_frame_at_each_layer(service):
    media, question = service.open_example("video/0")
    found = items(service.compare("a", media, question, ["evs:keep=0.25", "fastv:keep=0.25"]))
    evs, fastv = (item.answer for item in found if isinstance(item, comparing.Answered))
    assert len(evs.views) == len(fastv.views) == 8
    last = len(evs.trace.tokens_per_layer) - 1
    newlines = 1
    assert sum(view.kept(last) for view in evs.views) in range(
        int(evs.trace.tokens_per_layer[last, 0]) - newlines, int(evs.trace.tokens_per_layer[last, 0]) + 1
    )
    assert sum(view.kept(0) for view in fastv.views) > sum(view.kept(last) for view in fastv.views)
    first, later = (showing.kept(fastv, "A", layer, 2) for layer in (0, last))
    assert "frame 3 of 8" in first and "before layer 0" in first and first != later


def test_a_model_of_one_s_own_with_pictures_in_tiles(tmp_path):
    folder = str(checkpoint("llava_next", tmp_path / "next"))
    own = Service(arguments("--model", folder, "--max-new-tokens", "4"), PATIENT)
    media, question = own.open_example("images/5")
    found = items(own.compare("a", media, question, ["divprune:keep=0.5", "fastv:layer=1,keep=0.5"]))
    answers = [item.answer for item in found if isinstance(item, comparing.Answered)]
    for answer in answers:
        given = int(answer.trace.original_tokens[0])
        assert int(answer.trace.tokens_per_layer[-1, 0]) == round(given / 2)
        (view,) = answer.views  # the thumbnail
        assert 0 < view.kept() < view.tokens.numel() < given
    assert f"--model {folder} --example images/5" in reproduce.commands(own.source, media, question, ["none", "none"])
    assert f"load({folder!r}, " in reproduce.python(own.source, media, question, ["none", "none"])
    with pytest.raises(InputError, match="LlavaNextProcessor takes no videos"):
        items(own.compare("a", own.open_example("video/0")[0], question, ["none", "none"]))
    own.close()
