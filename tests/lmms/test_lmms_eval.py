"""The real lmms-eval on the embedded model: compressed by `compress=SPEC` in --model_args. Run by `make test-lmms`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtc.eval import embedded

pytest.importorskip("lmms_eval", reason="in an environment of its own: make test-lmms")

HERE, QUESTIONS = Path(__file__).parent, 6


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A folder with the task and its data."""
    folder = tmp_path_factory.mktemp("toy")
    rows = []
    for number, sample in enumerate(embedded.benchmark(QUESTIONS)[:]):
        sample.image.save(folder / f"{number}.png")
        rows.append({"image": str(folder / f"{number}.png"), "question": sample.question, "answer": sample.answer})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yaml = (HERE / "toy" / "vtc_toy.yaml").read_text().replace("QUESTIONS", str(folder / "questions.jsonl"))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "vtc_toy.yaml").write_text(yaml)
    (folder / "tasks" / "toy.py").write_text((HERE / "toy" / "toy.py").read_text())
    return folder


def lmms_eval(
    toy: Path, output: Path, compress: str | None, *more: str, arguments: str = ""
) -> subprocess.CompletedProcess:
    model = f"pretrained={embedded.path()},dtype=float32{arguments}"
    model += "" if compress is None else f",compress={compress}"
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_hf", "--model_args", model, "--tasks", "vtc_toy"]
    command += ["--include_path", str(toy / "tasks"), "--batch_size", "1", "--device", "cpu", "--log_samples"]
    environment = {**os.environ, "PYTHONPATH": str(HERE / "stand_in"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_HOME"] = str(toy / "hub")
    command += ["--output_path", str(output), *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=toy)


def results(done: subprocess.CompletedProcess, output: Path) -> tuple[dict, list[dict]]:
    found = list(output.rglob("*_results.json"))  # it ends with 0 after errors as well
    assert len(found) == 1, done.stdout[-2000:] + done.stderr[-4000:]
    (file,) = found
    (samples,) = output.rglob("*_samples_vtc_toy.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(file.read_text()), sorted(lines, key=lambda line: line["doc_id"])


def answers(samples: list[dict]) -> list:
    return [sample["filtered_resps"] for sample in samples]


@pytest.fixture(scope="module")
def stock(toy, tmp_path_factory) -> list[dict]:
    """Samples of lmms-eval's own class, which the entry point is kept from replacing."""
    output = tmp_path_factory.mktemp("stock")
    code = (
        "import vtc.eval.lmms_plugin as plugin; plugin.manifests = lambda: []\n"
        "import runpy, sys; sys.argv[0] = 'lmms_eval'; runpy.run_module('lmms_eval', run_name='__main__')\n"
    )
    real = subprocess.run

    def without(command, **rest):
        return real([sys.executable, "-c", code, *command[3:]], **rest)

    patch = pytest.MonkeyPatch()
    patch.setattr(subprocess, "run", without)
    try:
        done = lmms_eval(toy, output, None, arguments=",device_map=cpu")
        refused = lmms_eval(toy, output / "refused", "none", arguments=",device_map=cpu")
    finally:
        patch.undo()
    assert "Unexpected kwargs: {'compress': 'none'}" in refused.stdout + refused.stderr, "this is not the stock class"
    return results(done, output)[1]


@pytest.mark.parametrize("compress", [None, "none"])
def test_uncompressed_it_is_the_stock_wrapper(toy, tmp_path, stock, compress):
    built, samples = results(lmms_eval(toy, tmp_path, compress), tmp_path)
    assert answers(samples) == answers(stock)
    assert [sample["input"] for sample in samples] == [sample["input"] for sample in stock]
    if compress == "none":
        assert built["throughput"]["avg_kept_tokens"] == built["throughput"]["avg_visual_tokens"] == 256


def test_a_spec_in_the_models_arguments_compresses_and_its_costs_are_in_the_results(toy, tmp_path, stock):
    built, samples = results(lmms_eval(toy, tmp_path, "divprune:keep=0.25"), tmp_path)
    found = built["throughput"]
    assert (found["avg_visual_tokens"], found["avg_kept_tokens"], found["avg_failed_calls"]) == (256, 64, 0)
    for name in ("prefill_ms", "first_token_ms", "decode_tokens_per_s", "kv_bytes", "selection_ms", "flops"):
        assert found[f"avg_{name}"] > 0, name
    assert found["avg_peak_memory_bytes"] >= 0
    assert found["avg_flops"] < found["avg_flops_without"]
    assert "divprune:keep=0.25" in json.dumps(built["config"])
    assert [sample["input"] for sample in samples] == [sample["input"] for sample in stock], "the prompts stay the same"


def test_the_answers_are_those_of_the_patched_model(toy, tmp_path):
    import vtc

    model, processor = embedded.load()
    expected = []
    with vtc.patched(model, "random:keep=4"):
        for sample in embedded.benchmark(QUESTIONS):
            text = embedded.prompt(processor, sample.question)
            inputs = processor(images=sample.image, text=text, return_tensors="pt")
            made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            expected.append(processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    _, samples = results(lmms_eval(toy, tmp_path, "random:keep=4"), tmp_path)
    said = [resps[0] if isinstance(resps, list) else resps for resps in answers(samples)]
    assert [each.strip() for each in said] == expected


@pytest.mark.parametrize("quoted", ["{fastv:layer=2,keep=0.5}", "{divprune:keep=0.5+fastv:layer=2,keep=0.5}"])
def test_specs_with_commas_stand_in_braces(toy, tmp_path, quoted):
    built, _ = results(lmms_eval(toy, tmp_path, quoted, "--limit", "2"), tmp_path)
    before = 128 if "divprune" in quoted else 256
    assert built["throughput"]["avg_tokens_from_layer_2"] == built["throughput"]["avg_kept_tokens"] == before / 2


def test_the_spec_is_part_of_the_caches_key(toy, tmp_path):
    cache = ["--use_cache", str(tmp_path / "cache"), "--limit", "2"]
    called = []
    for number, spec in enumerate(("divprune:keep=0.25", "divprune:keep=0.25", "divprune:keep=0.125")):
        output = tmp_path / str(number)
        built, _ = results(lmms_eval(toy, output, spec, *cache), output)
        called.append((built.get("throughput") or {}).get("avg_kept_tokens"))
    assert called == [64, None, 32], "without a call nothing is measured"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("divprun:keep=0.25", "divprune"),
        ("divprune:keep=7.5", "keep"),
        ("fastv:layer=2,keep=0.5", "stands outside compress"),
    ],
)
def test_a_bad_spec_is_refused_before_the_model_is_loaded(toy, tmp_path, monkeypatch, spec, said):
    monkeypatch.setattr(embedded, "path", lambda: tmp_path / "no weights here")
    done = lmms_eval(toy, tmp_path, spec)
    told = done.stdout + done.stderr
    assert not list(tmp_path.rglob("*_results.json"))
    assert "ValueError" in told and said in told.rpartition("ValueError")[2]
