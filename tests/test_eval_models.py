"""Checkpoints of one's own behind --model: any family, any number of pictures a question, padding on the left."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import CHECKPOINTS, checkpoint
from transformers import CLIPImageProcessor, Qwen2VLImageProcessor

import vtc
from vtc.eval import models
from vtc.eval.cli import main
from vtc.eval.cli.errors import InputError


@pytest.fixture(scope="module", params=CHECKPOINTS)
def folder(request, tmp_path_factory):
    return checkpoint(request.param, tmp_path_factory.mktemp("models") / request.param)


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("spec", ["random:keep=0.5", "fastv:layer=1,keep=0.5"])
@pytest.mark.parametrize("pictures", [(1, 1, 1), (2, 1, 3), (1, 0, 2)], ids=str)
def test_a_row_of_a_batch_says_what_it_says_alone(folder, pictures, spec):
    """Any number of pictures a row, text-only rows among them; compressed, in a batch or alone."""
    loaded = models.load(str(folder), "float32", "cpu", None)
    shown = [[picture(30 + 9 * row, 40 + 5 * number) for number in range(count)] for row, count in enumerate(pictures)]
    questions = ["which colour is the disc ?", "yes", "is the square blue or green , one word ?"]
    with vtc.patched(loaded.model, spec.replace("random", "stride")):
        inputs = loaded.inputs(shown, questions)
        assert inputs["attention_mask"][:, -1].all() and not inputs["attention_mask"][:, 0].all()
        together = loaded.model(**inputs).logits[:, -1]
        for row, (some, question) in enumerate(zip(shown, questions)):
            alone = loaded.model(**loaded.inputs([some], [question])).logits[0, -1]
            torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


def test_a_folder_is_evaluated_and_the_result_tells_what_was_loaded(folder, tmp_path):
    for number in range(3):
        picture(40 + number, 50).save(tmp_path / f"{number}.png")
    entries = [{"image": f"{n}.png", "question": "which colour ?", "answer": "red"} for n in range(3)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, entries)))
    command = ["eval", "--model", str(folder), "--images", str(tmp_path), "--methods", "random", "--keep", "0.5"]
    options = ["--attn", "eager", "--dtype", "bfloat16", "--batch-size", "2", "--max-new-tokens", "2"]
    assert main([*command, *options, "--output", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    facts, config = results["model"], results["config"]
    assert (facts["dtype"], facts["attn_implementation"], facts["devices"]) == ("bfloat16", "eager", ["cpu"])
    assert facts["parameters"] == sum(p.numel() for p in models.load(str(folder), None, "cpu", None).model.parameters())
    assert facts["picture_size"]
    assert {"dtype", "attn", "device_map", "min_pixels", "max_pixels", "frames", "prompts", "batch_size"} <= set(config)
    assert results["questions"] == 3 and not results["failed"]


def test_pixels_are_set_where_the_processor_counts_them():
    class Processor:
        image_processor = Qwen2VLImageProcessor()

    models._set_pixels(Processor, {"max_pixels": 28 * 28 * 4})
    grid = Processor.image_processor([picture(300, 300)])["image_grid_thw"]
    assert np.prod(grid) <= 16
    with pytest.raises(InputError, match="--min-pixels, --max-pixels"):
        models._set_pixels(Processor, {"min_pixels": 10**6})
    Processor.image_processor = CLIPImageProcessor()
    with pytest.raises(InputError, match=r"--max-pixels: 5 can't be set, CLIPImageProcessor"):
        models._set_pixels(Processor, {"max_pixels": 5})


def test_pixels_of_a_model_whose_pictures_have_one_size_are_refused_before_anything_runs(tmp_path, capsys):
    assert main(["eval", "--max-pixels", "3136", "--output", str(tmp_path / "run")]) == 2
    assert "--max-pixels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
