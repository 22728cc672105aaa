"""What is shown, in words too and escaped; and the code that reproduces it."""

import contextlib
import dataclasses
import io
import shlex

import pytest
from covering import REST
from demo_server import items
from PIL import Image

from vtc.demo import reproduce
from vtc.demo.jobs import comparison as comparing
from vtc.demo.jobs.inference import Media
from vtc.demo.service import EXAMPLES
from vtc.demo.view import curves, outcome
from vtc.demo.view import html as showing
from vtc.eval import cli
from vtc.eval.media.picture import View
from vtc.eval.tasks.benchmarks import example


def test_whatever_a_visitor_typed_is_escaped():
    evil = "<script>alert(1)</script>\"'"
    media = Media(Image.new("RGB", (8, 8)), evil)
    dot = curves.Dot(1, 1, evil)
    drawn = curves.draw({evil: [dot]}, evil, evil, evil)
    for page in (
        showing.said(evil, "A"),
        outcome.asked(evil),
        outcome.heading("A", evil),
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
    assert 'alt="A: 64 of 256 visual tokens kept, 192 merged into them.' in page
    assert "<figcaption><b>64</b> of 256 visual tokens kept, 192 merged into them</figcaption>" in page
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


def test_a_panorama_is_drawn_as_well(service):
    shown = Image.new("RGB", (15000, 60), "red")
    media = Media(shown, "wide.png")
    found = items(service.compare("a", media, "What colour?", ["divprune:keep=0.25", "none"]))
    answer = next(item.answer for item in found if isinstance(item, comparing.Answered))
    view = View(shown, answer.views[0].tokens, answer.views[0].trace)
    assert "<img" in showing.kept(dataclasses.replace(answer, views=(view,)), "A", 8, 0)
    assert "<img" in showing.preview(media)


def ran(lines):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(lines, "copied", "exec"), {})
    return out.getvalue()


@pytest.mark.parametrize("name", ["images/5", pytest.param("video/0", marks=REST), "upload"])
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
