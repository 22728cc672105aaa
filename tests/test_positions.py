"""`positions` of selectors: survivors numbered anew or as they were, in a spec, by a keyword, in `vtc eval`."""

import json

import pytest
import torch
from contract import batch, ran
from eval_runs import exit_code

import vtc
from vtc.eval.cli import main
from vtc.eval.report.command import read_runs
from vtc.eval.report.compare import compare, tables
from vtc.eval.results.kinds import positions_of
from vtc.eval.results.settings import make_settings

#: Families whose positions have one axis, and several.
PLAIN, SEVERAL = ["llava_onevision_video", "llava_next_video_video", "llava"], ["qwen2_5_vl_video", "qwen3_vl_video"]
SPEC = "divprune:keep=0.5"
pytestmark = pytest.mark.usefixtures("no_grad")


def entered(model, inputs):
    """What an untouched model's decoder is entered with: embeddings [1, n, D]."""
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("positions", ["packed", "original"])
def test_survivors_stand_where_the_spec_says(family, positions):
    """As the untouched decoder has it, fed with the tokens that are left, at these numbers."""
    model = batch(family, "single")[0]
    inputs, output, trace = ran(family, f"{SPEC},positions={positions}")
    alive = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    (image,) = trace.images
    alive[image.source.positions] = False
    alive[image.source.positions[image.kept()]] = True
    places = alive.nonzero()[:, 0]
    numbers = places if positions == "original" else torch.arange(len(places))
    embeds = entered(model, inputs)[:, places]
    hidden = model.model.language_model(inputs_embeds=embeds, position_ids=numbers[None]).last_hidden_state
    torch.testing.assert_close(output.logits[:, -1], model.lm_head(hidden[:, -1]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", SEVERAL)
def test_of_several_axes_the_original_ones_are_kept_anyway(family):
    packed, original = (ran(family, f"{SPEC},positions={each}")[1].logits for each in ("packed", "original"))
    assert torch.equal(packed, original)


def test_it_is_a_keyword_and_a_field_of_every_selector():
    for name in {*vtc.list_methods("selector")} - {"none"}:
        (method,) = vtc.spec.parse(name, positions="original")
        assert method.positions == "original" and vtc.spec.parse(vtc.spec.to_string([method])) == [method]
    with pytest.raises(ValueError, match="positions='middle' is not one of 'packed', 'original'"):
        vtc.DivPrune(positions="middle")
    with pytest.raises(ValueError, match="fastv has no field 'positions'"):
        vtc.spec.parse("fastv:positions=packed")


# ---------------------------------------------------------------- the harness


def test_every_setting_runs_under_each_numbering_once():
    settings = make_settings(["none", "evs", "fastv"], [0.5], ["divprune:keep=0.25+fastv"], ["packed", "original"])
    assert [setting.name for setting in settings] == [
        "none", "evs:keep=0.5", "evs:keep=0.5,positions=original", "fastv:keep=0.5",
        "divprune:keep=0.25+fastv:keep=0.5", "divprune:keep=0.25,positions=original+fastv:keep=0.5",
    ]  # fmt: skip
    assert settings[2].series == "evs:positions=original" and settings[2].methods[0].positions == "original"
    (_, only) = make_settings(["evs"], [0.5], [], ["original"])
    assert only == settings[2]


def test_a_series_tells_how_it_numbers():
    assert positions_of("holitom") == "packed" and positions_of("holitom:positions=original") == "original"
    assert positions_of("fastv") == "original" and positions_of("divprune:keep=0.5+fastv") == "packed+original"
    assert positions_of("none") == positions_of("nobodys") == ""


def test_vtc_eval_and_compare_have_a_column_of_them(tmp_path, capsys):
    run = tmp_path / "run"
    command = "eval --tasks video --methods random,frame_stride --keep 0.25 --positions packed,original --limit 2"
    assert main([*command.split(), "--batch-size", "2", "--max-new-tokens", "2", "--output", str(run)]) == 0
    results = json.loads((run / "results.json").read_text())
    assert [row["setting"] for row in results["settings"]] == [
        "none", "random:keep=0.25", "random:keep=0.25,positions=original", "frame_stride:keep=0.25",
        "frame_stride:keep=0.25,positions=original",
    ]  # fmt: skip
    kept = {row["series"]: row["tokens_per_frame"] for row in results["settings"]}
    assert kept["random"] == kept["random:positions=original"]
    table = (run / "results.md").read_text()
    assert "| setting | positions | tokens |" in table and "| none | – |" in table
    assert "| random:keep=0.25 | packed |" in table and "| random:keep=0.25,positions=original | original |" in table
    (found,), _ = read_runs([run])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables(compare(found, "random"), "random")]
    assert lines[0][:3] == ["method", "decides by", "positions"]
    assert {line[0]: line[2] for line in lines if line and line[0].startswith("`")} == {
        "`random`": "packed", "`random:positions=original`": "original", "`frame_stride`": "packed",
        "`frame_stride:positions=original`": "original",
    }  # fmt: skip


def test_other_words_are_refused(capsys, tmp_path):
    assert exit_code(["eval", "--positions", "packed,kept", "--output", str(tmp_path / "run")]) == 2
    assert "'kept' is neither packed nor original; write e.g. packed,original" in capsys.readouterr().err
