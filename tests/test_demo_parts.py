"""The demo without its page: controls, comparisons, sweeps, and the code that reproduces them."""

import asyncio
import contextlib
import dataclasses
import io
import itertools
import shlex
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from demo_server import PATIENT, arguments
from PIL import Image
from tiny_checkpoints import checkpoint

import vtc
from vtc import registry, spec
from vtc.budget import Keep
from vtc.demo import asking, comparing, controls, curves, gallery, reproduce, showing
from vtc.demo.asking import Media
from vtc.demo.service import EXAMPLES, MOST_SETTINGS, Service
from vtc.demo.store import OnceEach, Store
from vtc.demo.turns import Waiting
from vtc.eval import cli
from vtc.eval.benchmarks import bundled_task, example
from vtc.eval.errors import InputError
from vtc.eval.models import load
from vtc.eval.picture import View
from vtc.method import Selector

METHODS = [name for name in registry.METHODS if name != "none"]


@pytest.fixture(scope="module")
def service():
    made = Service(arguments(), PATIENT)
    yield made
    made.close()


@pytest.fixture(scope="module")
def loaded():
    return load("embedded", None, "cpu", None, "image")


@pytest.fixture
def refused_method(monkeypatch):
    """A method that goes with no picture, for the length of a test: what is registered for good is in every matrix."""

    @dataclass
    class Refused(Selector):
        keep: Keep = 0.5
        name = "test-refused"

        def select(self, visual, k):
            raise ValueError("this picture will not do")

    monkeypatch.setitem(registry._registered, "test-refused", Refused)


def items(iterator):
    async def gather():
        return [item async for item in iterator if not isinstance(item, Waiting)]

    return asyncio.run(gather())


class Free:
    """A ticket that nobody stops."""

    def check(self):
        pass

    def send(self, item):
        pass


# -- controls


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_control_for_each_field_and_none_else(name):
    methods = controls.parse(name, 400)
    found = controls.controls(methods)
    assert [control.name for control in found] == [field.name for field in vtc.fields.settable(methods[0])]
    for control in found:
        assert controls.changed(methods, control, control.value) == methods
        assert control.about, f"{name}.{control.name} is not described"
    assert controls.parse(controls.to_text(methods), 400) == methods


def test_a_control_changes_its_own_field_of_its_own_method():
    methods = controls.parse("divprune:keep=0.5+fastv:keep=0.25", 400)
    (_, _, layer, keep) = controls.controls(methods)
    assert (layer.stage, layer.name, keep.stage, keep.name) == (1, "layer", 1, "keep")
    assert controls.to_text(controls.changed(methods, layer, 3.0)) == "divprune:keep=0.5+fastv:layer=3,keep=0.25"
    assert controls.to_text(controls.changed(methods, keep, 1)) == "divprune:keep=0.5+fastv:keep=1.0"


def test_keep_changes_its_unit_and_stays_what_it_is_where_the_method_changes():
    methods = controls.parse("divprune:keep=0.5", 400)
    assert controls.units(methods[0]) == (controls.SHARE, controls.TOKENS)
    counted = controls.in_unit(methods, 0, controls.TOKENS)
    assert controls.to_text(counted) == "divprune:keep=64" and controls.unit(counted[0]) == controls.TOKENS
    assert controls.to_text(controls.with_first(counted, "hiprune")) == "hiprune:keep=64"
    assert controls.to_text(controls.with_second(counted, "fastv")) == "divprune:keep=64+fastv:keep=0.5"
    (adaptive,) = controls.parse("recoverable:keep=None", 400)
    assert controls.unit(adaptive) == controls.ADAPTIVE and controls.ADAPTIVE in controls.units(adaptive)
    assert controls.to_text(controls.with_first([adaptive], "divprune")) == "divprune:keep=0.098"


@pytest.mark.parametrize(
    "text, message",
    [
        ("divprun", "unknown method 'divprun'; did you mean 'divprune'"),
        ("divprune:keep=2.0", "keep=2.0"),
        ("divprune:" + "x" * 500, "spec has 509 characters; at most 400"),
        ("((((" * 90, "unknown method"),
        ("recoverable:clip=/etc,tokenizer=/etc", "clip='/etc' of recoverable names a file or a model"),
        ("atp:weights=/etc/passwd", "names a file or a model"),
    ],
)
def test_a_spec_that_can_t_be_used_is_refused_in_a_sentence(text, message):
    with pytest.raises(InputError) as error:
        controls.parse(text, 400)
    assert message in str(error.value)


def test_a_control_can_t_name_a_file_either():
    methods = controls.parse("recoverable:keep=None", 400)
    clip = next(control for control in controls.controls(methods) if control.name == "clip")
    with pytest.raises(InputError, match="names a file or a model"):
        controls.changed(methods, clip, "/etc/passwd")


def test_a_control_takes_what_its_field_is_declared_as_not_what_it_is_now():
    for text, name, given, spec_text in (
        ("tome:keep=0.5,inflection=0", "inflection", 0.5, "tome:keep=0.5,inflection=0.5"),
        ("hiprune:keep=0.5,alpha=1", "alpha", 0.25, "hiprune:keep=0.5,alpha=0.25"),
        ("random:keep=0.5", "seed", 3.0, "random:keep=0.5,seed=3"),
    ):
        methods = controls.parse(text, 400)
        control = next(each for each in controls.controls(methods) if each.name == name)
        assert controls.to_text(controls.changed(methods, control, given)) == spec_text
    huge = controls.controls(controls.parse("random:keep=0.5,seed=99999999999999999999", 400))[1]
    assert (huge.kind, huge.value) == ("text", "99999999999999999999")


def test_a_control_of_a_method_that_is_gone_says_so():
    methods = controls.parse("divprune:keep=0.5+fastv:keep=0.25", 400)
    layer = next(each for each in controls.controls(methods) if each.name == "layer")
    for left in (methods[:1], controls.parse("divprune+transprune", 400)):
        with pytest.raises(InputError, match="the spec has no layer there any more"):
            controls.changed(left, layer, 3)


def test_a_control_that_holds_nothing_usable_says_so():
    methods = controls.parse("fastv", 400)
    layer, keep = controls.controls(methods)
    for control, given in ((layer, None), (keep, "half"), (keep, None)):
        with pytest.raises(InputError, match=f"{control.name} is .*; give a number"):
            controls.changed(methods, control, given)
    with pytest.raises(InputError, match="layer=-1"):
        controls.changed(methods, layer, -1)


# -- comparing


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


def test_what_a_visitor_looks_at_is_kept_until_it_was_not_used_for_long_or_the_store_is_full():
    store = Store(100, 0.3)
    first, second = store.put("first", 40), store.put("second", 40)
    assert store.get(first) == "first"
    third = store.put("third", 40)  # too much: what was not used for longest goes
    assert (store.get(first), store.get(second), store.get(third)) == ("first", None, "third")
    assert store.get(store.put("huge", 1000)) == "huge" and store.get(third) is None
    late = store.put("late", 1)
    time.sleep(0.4)
    assert store.get(late) is None and store.get("nonsense") is None
    assert len({store.put("x", 1) for _ in range(100)}) == 100


def test_equal_uploads_are_read_once_and_failures_are_tried_again():
    once, count, gate = OnceEach(2), [], threading.Event()

    def slow():
        count.append(1)
        gate.wait(20)
        return "read"

    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(once.get, "a", slow) for _ in range(4)]
        gate.set()
        assert [result.result() for result in results] == ["read"] * 4
    assert len(count) == 1 and once.get("a", lambda: "again") == "read"

    def broken():
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        once.get("b", broken)
    assert once.get("b", lambda: "better") == "better" and once.get("c", lambda: "c") == "c"
    assert once.get("a", lambda: "forgotten") == "forgotten"


def test_a_panorama_is_drawn_as_well(service):
    shown = Image.new("RGB", (15000, 60), "red")
    media = Media(shown, "wide.png")
    found = items(service.compare("a", media, "What colour?", ["divprune:keep=0.25", "none"]))
    answer = next(item.answer for item in found if isinstance(item, comparing.Answered))
    view = View(shown, answer.views[0].tokens, answer.views[0].trace)
    assert "<img" in showing.kept(dataclasses.replace(answer, views=(view,)), "A", 8, 0)
    assert "<img" in showing.preview(media)


# -- likelihood and sweeps


def test_the_likelihood_of_an_answer_is_what_a_forward_pass_says(service, loaded):
    media, question = service.open_example("images/6")
    inputs = asking.inputs_of(loaded, media.shown, question)
    whole = asking.ask(loaded, media, inputs, spec.parse("none"), 8, Free())
    for text in ("none", "divprune:keep=0.25", "random:keep=0.1"):
        found = asking.probability(loaded, inputs, spec.parse(text), whole.ids, Free())
        given = {**inputs, "input_ids": torch.cat([inputs["input_ids"], whole.ids], 1)}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        with torch.no_grad(), vtc.patched(loaded.model, text):
            logits = loaded.model(**given).logits[:, -whole.ids.shape[1] - 1 : -1]
        told = logits.log_softmax(-1).gather(-1, whole.ids[..., None]).mean().exp()
        assert found == pytest.approx(float(told), rel=1e-4)
        assert 0 < found <= 1


def test_a_sweep_over_one_question_tells_of_each_setting_as_it_goes(service):
    media, question = service.open_example("images/5")
    found = items(service.sweep("a", media, question, ["divprune", "random"], "0.5, 16", 0))
    assert [(item.done, item.total) for item in found] == [(number, 5) for number in range(1, 6)]
    points = found[-1].points
    assert [point.setting.name for point in points] == [
        "none", "divprune:keep=0.5", "divprune:keep=16", "random:keep=0.5", "random:keep=16",
    ]  # fmt: skip
    assert [point.equivalent for point in points] == [256, 128, 16, 128, 16]
    assert all(0 <= point.value <= 1 and point.speedup > 0 for point in points)
    assert points[0].answer == "9" and points[0].value > 0.9
    for number, item in enumerate(found):  # each is as it was then, whatever came later
        assert [bool(point.values) for point in item.points] == [place <= number for place in range(5)]


def test_a_sweep_over_the_benchmark_counts_right_answers_as_the_harness_does(service, loaded):
    count = 10
    found = items(service.sweep("a", service.media("images/0"), "", ["divprune"], "0.0625", count))
    assert [(item.done, item.total) for item in found] == [(number, 4) for number in range(1, 5)]
    task = bundled_task("image", count, "test", 0)
    for point in found[-1].points:
        right = []
        for number in range(count):
            question = task.get(number)
            inputs = loaded.inputs([question.shown()], [question.text])
            with vtc.patched(loaded.model, point.setting.methods or "none"):
                out = loaded.model.generate(**inputs, max_new_tokens=64, do_sample=False)
            right.append(question.score(loaded.answers(out, inputs)[0]).score)
        assert point.values == right
        low, high = point.interval
        assert low - 1e-9 <= point.value <= high + 1e-9


def test_a_setting_that_is_refused_does_not_end_a_sweep(service, refused_method):
    media, question = service.open_example("images/5")
    for count in (0, 9):
        found = items(service.sweep("a", media, question, ["evs", "test-refused"], "0.5", count))
        by_name = {point.setting.name: point for point in found[-1].points}
        assert "will not" in by_name["test-refused:keep=0.5"].refused and not by_name["test-refused:keep=0.5"].values
        assert by_name["evs:keep=0.5"].values
        drawn = showing.points(found[-1].points, count > 0)
        assert "will not" in drawn and showing.chart(found[-1].points, count > 0)


@pytest.mark.parametrize(
    "methods, keeps, count, message",
    [
        ([], "0.5", 0, "no method is chosen"),
        (["divprune"], "0.5, x", 0, "keep: 'x' is not a number"),
        (["divprune"], "2.0", 0, "keep: keep=2.0"),
        (["divprune"], ",".join(f"{number}" for number in range(1, MOST_SETTINGS + 2)), 0, "settings are too many"),
        (["divprun"], "0.5", 0, "did you mean"),
        (["divprune"], "0.5", 1000, "1000 questions; give 1 to 90"),
    ],
)
def test_a_sweep_that_can_t_be_is_refused(service, methods, keeps, count, message):
    media, question = service.open_example("images/5")
    with pytest.raises(InputError, match=message):
        items(service.sweep("a", media, question, methods, keeps, count))


def test_all_methods_at_one_budget_each_with_its_answer_or_its_reason(service, refused_method):
    media, question = service.open_example("images/5")
    found = items(service.deal("a", media, question, 0.25))
    cards = found[-1].cards
    assert [card.method for card in cards] == list(gallery.specs_at(0.25)) and len(cards) == found[-1].total
    assert {"none", *METHODS} <= {card.method for card in cards}
    for card in cards:
        assert (card.answer is None) == bool(card.refused)
    assert "will not" in next(card.refused for card in cards if card.method == "test-refused")
    page = showing.cards(cards)
    assert page.count("<article") == len(cards) and page.count("<img") == sum(card.answer is not None for card in cards)


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


# -- what is shown


def test_whatever_a_visitor_typed_is_escaped():
    evil = "<script>alert(1)</script>\"'"
    media = Media(Image.new("RGB", (8, 8)), evil)
    dot = curves.Dot(1, 1, evil)
    drawn = curves.draw({evil: [dot]}, evil, evil, evil)
    for page in (
        showing.said(evil, "A"),
        showing.refused(evil),
        showing.preview(media),
        drawn,
        showing.progress(1, 2, evil),
    ):
        assert "<script" not in page and "&lt;script" in page


def test_every_picture_has_words(service):
    media, question = service.open_example("images/5")
    answer = next(
        item.answer
        for item in items(service.compare("a", media, question, ["tome:keep=0.25", "none"]))
        if isinstance(item, comparing.Answered)
    )
    page = showing.kept(answer, "A", 8, 0)
    assert 'alt="A: after layer 7, the last: 64 of 256 tokens alive, 192 merged into them.' in page
    assert "dropped ones dark, merged ones outlined" in page
    assert 'alt="Picture: images/5"' in showing.preview(media)
    buttons = showing.examples(EXAMPLES, "images/5")
    assert buttons.count("aria-label=") == len(EXAMPLES) + 1 and buttons.count('aria-pressed="true"') == 1


def test_numbers_and_their_ratio(service):
    media, question = service.open_example("images/5")
    found = items(service.compare("a", media, question, ["divprune:keep=0.25", "none"]))
    a, b = (item.answer for item in found if isinstance(item, comparing.Answered))
    costs = [comparing.numbers(answer, found[-1].timings[side]) for side, answer in enumerate((a, b))]
    page = showing.numbers(costs, ["divprune:keep=0.25", "none"])
    assert '<tr data-number="equivalent"><th scope="row">Equivalent tokens</th><td>64.0</td><td>256.0</td>' in page
    assert 'class="vtc-ratio">0.25</td>' in page
    assert f"medians of {costs[0].rounds} rounds" in page
    assert costs[0].kv_bytes < costs[1].kv_bytes and costs[0].flops < costs[1].flops
    alone = showing.numbers([costs[0], None], ["divprune:keep=0.25", "none"])
    assert '<td>64.0</td><td>–</td><td class="vtc-ratio">–</td>' in alone
    assert showing.numbers([None, None], ["", ""]) == ""


def test_a_chart_puts_points_where_they_belong():
    drawn = curves.draw({"m": [curves.Dot(100, 50, "half"), curves.Dot(0, 0, "none", 0, 20)]}, "t", "x", "y", (0, 100))
    axis = curves._Axis(0.0, 105.0, curves._LEFT, curves._WIDTH - curves._RIGHT)
    assert f"translate({axis(100)} {(curves._TOP + curves._HEIGHT - curves._BOTTOM) / 2})" in drawn
    assert drawn.index("<title>none</title>") < drawn.index("<title>half</title>")
    assert curves.draw({}, "t", "x", "y") == ""


# -- code that reproduces it


def ran(lines):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(lines, "copied", "exec"), {})
    return out.getvalue()


@pytest.mark.parametrize("name", ["images/5", "video/0", "upload"])
def test_the_copied_lines_give_the_answers_on_the_screen(service, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    if name == "upload":
        question = "-Is it \"red\" or $blue; 'what'?"
        picture = example("images/1")[1].shown()[0]
        picture.save("my photo's.png")
        media = Media(picture, "my photo's.png")
    else:
        media, question = service.open_example(name)
    specs = ["divprune:keep=0.1", "fastv:layer=2,keep=0.25"]
    found = items(service.compare("a", media, question, specs))
    answers = [item.answer for item in found if isinstance(item, comparing.Answered)]
    printed = ran(reproduce.python(service.source, media, question, specs))
    for text, answer in zip(specs, answers):
        tokens = f"-> {int(answer.trace.tokens_per_layer[-1, 0])} visual tokens"
        assert f"{text}\n{answer.text}\nvtc " in printed and tokens in printed
    for line, text, answer in zip(
        reproduce.commands(service.source, media, question, specs).splitlines(), specs, answers
    ):
        words = shlex.split(line)
        assert words[:2] == ["vtc", "ask"] and cli.main(words[1:]) == 0
        said = capsys.readouterr().out
        assert f"{text}: {answer.text}\n" in said
        assert f"-> {int(answer.trace.tokens_per_layer[-1, 0])} visual tokens" in said
    assert (tmp_path / "kept-a.png").exists() and (tmp_path / "kept-b.png").exists()
