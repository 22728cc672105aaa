"""`trl.SFTTrainer` trains the bundled model while it is patched, all weights or LoRA; needs trl (`vtc[train]`)."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from trainings import CLIP, weights_of

import vtc
from vtc.eval import embedded
from vtc.eval.tasks.benchmarks import bundled_task
from vtc.eval.train.compressed.data import beginning, conversations

trl = pytest.importorskip("trl", reason="trl is not installed; pip install 'vtc[train]'")
torch.set_num_threads(1)

RATE, STEPS, BATCH = 1e-2, 2, 2
TARGETS = r".*language_model.*(q_proj|v_proj)"
SPECS = ("divprune:keep=0.25", "tome:keep=0.25", "fastv:layer=2,keep=0.25")


@pytest.fixture(scope="module")
def processor():
    return embedded.load()[1]


def model_for(way):
    """The bundled model in training; of LoRA the same weights whenever it is asked for."""
    torch.manual_seed(0)
    model = embedded.load()[0].train()
    if way == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
    return model


class InOrder(trl.SFTTrainer):
    """Takes its questions as they come."""

    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer_of(model, processor, folder, data=None, **more):
    given = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": RATE, "optim": "sgd"}
    given |= {"lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "report_to": []}
    given |= {"use_cpu": True, "bf16": False, "max_length": None, "disable_tqdm": True, "shuffle_dataset": False}
    args = trl.SFTConfig(str(folder), **{**given, "gradient_checkpointing": False, **more})
    data = data or conversations(bundled_task("image", STEPS * BATCH, "train", 0))
    return InOrder(model, args, train_dataset=data, processing_class=beginning(processor))


def prepared(processor, numbers):
    """(inputs of questions with their answers, padded on the right; where each prompt ends)."""
    samples = [embedded.benchmark(STEPS * BATCH, "train")[number] for number in numbers]
    prompts = [embedded.prompt(processor, sample.question) for sample in samples]
    texts = [f"{prompt} {sample.answer}</s>" for prompt, sample in zip(prompts, samples)]
    pictures = [[sample.image] for sample in samples]
    asked = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
    inputs = processor(images=pictures, text=texts, padding=True, padding_side="right", return_tensors="pt")
    return dict(inputs), asked["attention_mask"].sum(1).tolist()


def by_hand(model, processor, order):
    """The losses of the steps, made of logits of calls without labels."""
    losses, weights = [], [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=RATE)
    for numbers in order:
        inputs, ends = prepared(processor, numbers)
        with vtc.prompt_length(model, ends):
            logits = model(**inputs).logits
        place = torch.arange(logits.shape[1])[None]
        answer = (place >= torch.tensor(ends)[:, None]) & inputs["attention_mask"].bool()
        loss = cross_entropy(logits[:, :-1][answer[:, 1:]], inputs["input_ids"][:, 1:][answer[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("spec", "way"), [(SPECS[0], "full"), (SPECS[0], "lora"), (SPECS[1], "full"), (SPECS[2], "lora")]
)
def test_steps_are_those_by_hand(spec, way, processor, tmp_path):
    model, expected = model_for(way), model_for(way)
    before = weights_of(model)
    trainer = trainer_of(model, processor, tmp_path)
    order = [range(start, start + BATCH) for start in range(0, STEPS * BATCH, BATCH)]
    with vtc.patched(trainer.model, spec):
        trainer.train()
        assert vtc.trace(trainer.model).tokens_per_layer[-1].tolist() == BATCH * [64]
    with vtc.patched(expected, spec):
        losses = by_hand(expected, processor, order)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert_close(logged, losses, atol=1e-5, rtol=1e-3)
    assert_close(weights_of(trainer.model), weights_of(expected), atol=1e-5, rtol=1e-3)
    assert any(not torch.equal(weight, before[name]) for name, weight in weights_of(trainer.model).items())


def test_checkpointing_with_a_selector_is_what_it_is_without(processor, tmp_path):
    """SFTConfig asks for it where nobody says otherwise."""
    found = []
    for checkpointing in (False, True):
        trainer = trainer_of(model_for("lora"), processor, tmp_path, gradient_checkpointing=checkpointing)
        with vtc.patched(trainer.model, SPECS[0]):
            trainer.train()
        found.append(weights_of(trainer.model))
    assert_close(found[1], found[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("option", ["packing", "padding_free"])
def test_packing_pictures_is_refused_by_trl(option, processor, tmp_path):
    """The day it is not, packed rows want a test: vtc's selectors and reducers know them, prunes refuse."""
    with pytest.raises(ValueError, match="not supported for vision datasets"):
        trainer_of(model_for("lora"), processor, tmp_path, **{option: True, "max_length": 1024})
