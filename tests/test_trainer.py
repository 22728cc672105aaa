"""`transformers.Trainer` trains a model while it is patched: its steps are those by hand, and it saves the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from contract import EVERY
from covering import product
from peft import PeftModel
from safetensors import safe_open
from torch.testing import assert_close
from trainings import batches, by_hand, model_for, summed, trainer_of, weights_of
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

import vtc

FAMILIES = ("llava", "qwen2_5_vl", "internvl", "gemma3")
SPECS = (
    "divprune:keep=0.5",
    "random:keep=0.5",
    "tome:keep=0.5",
    "fastv:layer=1,keep=0.5",
    "pool:keep=0.5+fastv:layer=1",
)
WAYS = ("full", "lora")
LLAVA = ("llava", "divprune:keep=0.5")


def logged(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def without_labels(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


@product(family=FAMILIES, spec=SPECS, way=WAYS, together=(1, 2))
def test_steps_are_those_by_hand(family, spec, way, together, tmp_path):
    expected, model = model_for(family, way), model_for(family, way)
    given, before = batches(family, model, 4), weights_of(model)
    with vtc.patched(expected, spec):
        losses = by_hand(expected, given, together)
    trainer = trainer_of(model, given, tmp_path, max_steps=4 // together, gradient_accumulation_steps=together)
    with vtc.patched(model, spec):
        trainer.train()
        assert vtc.trace(model).tokens_per_layer[-1].sum() < vtc.trace(model).original_tokens.sum()
    assert_close(logged(trainer), losses, atol=1e-4, rtol=1e-4)
    moved = 0
    for (name, weight), wanted in zip(weights_of(model).items(), weights_of(expected).values(), strict=True):
        assert_close(weight, wanted, atol=1e-4, rtol=1e-3, msg=name)
        moved += int(not torch.equal(weight, before[name]))
    assert moved > len(before) / 2


def test_tokens_that_went_make_a_difference():
    """Else the test above would agree with a trainer that does not compress."""
    given = batches("llava", model_for("llava", "full"), 1)
    losses = []
    for spec in ("none", *SPECS):
        model = model_for("llava", "full")
        with vtc.patched(model, spec):
            losses += by_hand(model, given)
    assert min(abs(losses[0] - loss) for loss in losses[1:]) > 1e-3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("spec", [LLAVA[1], "tome:keep=0.5", "fastv:layer=1,keep=0.5"])
def test_gradient_checkpointing_changes_nothing(way, spec, reentrant, tmp_path):
    family = LLAVA[0]
    found = []
    for more in ({}, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}):
        model = model_for(family, way)
        model.enable_input_require_grads()
        trainer = trainer_of(model, batches(family, model, 2), tmp_path, max_steps=2, **more)
        with vtc.patched(model, spec):
            trainer.train()
        found.append((logged(trainer), weights_of(model)))
    assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


@product(family=FAMILIES, way=WAYS, each="value")
def test_a_checkpoint_is_the_model_without_a_trace_of_the_patch(family, way, tmp_path):
    model = model_for(family, way)
    given = batches(family, model, 2)
    trainer = trainer_of(model, given, tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2)
    with vtc.patched(model, "divprune:keep=0.5"):
        trainer.train()
        model.save_pretrained(tmp_path / "by_hand")
    model.eval().save_pretrained(tmp_path / "unpatched")
    checkpoint = tmp_path / "run" / "checkpoint-2"
    for folder in (checkpoint, tmp_path / "by_hand"):
        for file in filter(Path.is_file, folder.rglob("*")):
            assert b"vtc" not in file.read_bytes(), f"{file} names vtc"
        assert names_in(folder) == names_in(tmp_path / "unpatched")
        if way == "lora":
            again = PeftModel.from_pretrained(EVERY[family].build(), folder)
        else:
            again = type(model).from_pretrained(folder)
        with torch.no_grad():
            for patched in (False, True):
                for each in (model, again.eval()) if patched else ():
                    vtc.patch(each, "divprune:keep=0.5")
                inputs = without_labels(given[0])
                assert_close(again(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
        vtc.unpatch(model)


def names_in(folder):
    """The names of all tensors that a folder holds."""
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= set(tensors.keys())
    assert found
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_training_that_goes_on_from_a_checkpoint_ends_as_one_in_a_piece(way, tmp_path):
    """All weights go by `from_pretrained`: Trainer 5.23 passes over a LLaVA's, which it saves by other names."""
    family, spec = LLAVA
    whole = model_for(family, way)
    given = batches(family, whole, 4)
    trainer = trainer_of(whole, given, tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    with vtc.patched(whole, spec):
        trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    model = model_for(family, way) if way == "lora" else type(whole).from_pretrained(checkpoint).train()
    resumed = trainer_of(model, given, tmp_path / "second", max_steps=4)
    with vtc.patched(model, spec):
        resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_close(weights_of(model), weights_of(whole), atol=1e-6, rtol=1e-5)


@product(family=FAMILIES, spec=SPECS, way=WAYS, each="value")
def test_evaluate_and_predict_are_those_of_a_plain_forward(family, spec, way, tmp_path):
    model = model_for(family, way)
    given = batches(family, model, 2)
    trainer = trainer_of(model, given, tmp_path)
    with vtc.patched(model, spec):
        loss = trainer.evaluate()["eval_loss"]
        predicted = trainer.predict(given)
        with torch.no_grad():
            sums = [summed(model.eval(), batch) for batch in given]
            logits = [model(**batch).logits.numpy() for batch in given]
    assert loss == pytest.approx(np.mean([float(total) / count for total, count in sums]), abs=1e-4)
    found = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    for number, each in enumerate(logits):
        np.testing.assert_allclose(found[2 * number : 2 * number + 2, : each.shape[1]], each, atol=1e-4)


def test_generate_in_evaluation_is_generate(tmp_path):
    model = model_for("llava", "lora")
    given = [prompt_of(batch) for batch in batches("llava", model, 2)]
    args = Seq2SeqTrainingArguments(
        str(tmp_path), per_device_eval_batch_size=1, use_cpu=True, predict_with_generate=True, report_to=[],
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(model, args, lambda one: dict(one[0]), eval_dataset=given)
    with vtc.patched(model, "divprune:keep=0.5"):
        found = trainer.predict(given, max_new_tokens=3).predictions
        expected = [model.eval().generate(**each, max_new_tokens=3, do_sample=False) for each in given]
    for number, each in enumerate(expected):  # prompts are of different lengths, the shorter padded behind
        assert found[2 * number : 2 * number + 2, : each.shape[1]].tolist() == each.tolist()


def prompt_of(batch):
    """A batch of prompts, without what stands behind them."""
    behind = int((batch["labels"] != -100).int().argmax(1)[0])
    return {
        name: value[:, :behind] if value.shape == batch["labels"].shape else value
        for name, value in without_labels(batch).items()
    }


class Told(Trainer):
    """What a loss of one's own needs under a prune: without labels nobody tells the model where prompts end."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ends = (inputs["labels"] != -100).int().argmax(1).tolist()
        with vtc.prompt_length(model, ends):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


@pytest.mark.parametrize("kind", [Trainer, Told])
def test_a_loss_of_ones_own_hides_the_labels_from_a_prune(kind, tmp_path):
    """`compute_loss_func` and label smoothing take the labels out of the call."""
    model = model_for("llava", "full")
    given = batches("llava", model, 1)
    trainer = kind(
        model, trainer_of(model, given, tmp_path, max_steps=1).args, lambda one: dict(one[0]), train_dataset=given,
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum(),
    )  # fmt: skip
    with vtc.patched(model, "fastv:layer=1,keep=0.5"):
        with torch.no_grad():
            model(**given[0])
        by_labels = [image.kept().tolist() for image in vtc.trace(model).images]
        trainer.train()
        kept = [image.kept().tolist() for image in vtc.trace(model).images]
    assert (kept == by_labels) == (kind is Told)
