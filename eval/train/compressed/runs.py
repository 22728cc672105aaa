"""One fine-tuning: a real `Trainer` of transformers or trl, whose model is patched in every step and asked between."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

import vtc
from vtc.eval import models
from vtc.eval.results.settings import NONE, Setting
from vtc.eval.tasks.task import Task
from vtc.eval.train.compressed.data import Answered, Collator, beginning, conversations
from vtc.eval.train.frozen import inputs_of
from vtc.method.base import Method

#: Of LoRA: the decoder's layers, and the rank.
TARGETS, RANK = r".*language_model.*(q_proj|v_proj|up_proj|down_proj)", 8
ASKED_AT_ONCE = 8

#: By setting, 1 for each question that was answered rightly and 0 for others, in the order of the task.
Right = dict[str, list[int]]


@dataclass(frozen=True)
class Plan:
    """What all fine-tunings have in common.

    Attributes:
        trainer: "transformers" or "trl".
        questions: to learn from, each seen once.
        held_out: to be asked.
        points: after which steps, in order; the last ends the training.
        batch: questions in a step.
        seed: of the order, and of LoRA's weights.
        rates: the greatest learning rate of each way.
    """

    trainer: str
    questions: Task
    held_out: Task
    points: tuple[int, ...]
    batch: int
    seed: int
    rates: Mapping[str, float]


def measured(loaded: models.Loaded, settings: Sequence[Setting], task: Task) -> Right:
    """Ask all questions as `vtc eval` does: in the same batches, with the same draws, so that answers are the same."""
    training = loaded.model.training
    loaded.model.eval()
    right: Right = {setting.name: [] for setting in settings}
    for index, numbers in enumerate(task.batches(ASKED_AT_ONCE)):
        questions = [task.get(number) for number in numbers]
        inputs = inputs_of(loaded, questions)
        for setting in settings:
            answers = _answers(loaded, setting.for_batch(index), inputs, task.max_new_tokens)
            scores = [question.score(task.cut(answer)) for question, answer in zip(questions, answers)]
            right[setting.name] += [int(bool(score.correct)) for score in scores]
    loaded.model.train(training)
    return right


def _answers(loaded: models.Loaded, methods: Sequence[Method], inputs: dict[str, Any], longest: int) -> list[str]:
    model = loaded.model
    with torch.inference_mode(), vtc.patched(model, *methods) if methods else nullcontext():
        said = model.generate(**inputs, max_new_tokens=longest, do_sample=False, num_beams=1)
    return loaded.answers(said, inputs)


class _Compressed(TrainerCallback):
    """Patches the model in front of each step, takes the patch off behind it, and asks the model at the points.

    A method with a `seed` draws anew in each step, as it does in each batch of `vtc eval`.
    """

    def __init__(self, loaded: models.Loaded, setting: Setting, settings: Sequence[Setting], plan: Plan):
        self.loaded, self.setting, self.settings, self.plan = loaded, setting, settings, plan
        self.losses: list[float] = []
        self.points: list[dict[str, Any]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Compress."""
        if self.setting.methods:
            vtc.patch(self.loaded.model, *self.setting.for_batch(state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Give the model back."""
        if self.setting.methods:
            vtc.unpatch(self.loaded.model)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        """Remember the loss; ask, where the curve has a point, which is behind the log of its step."""
        if "loss" not in (logs or {}):
            return
        self.losses.append(float(logs["loss"]))
        if state.global_step in self.plan.points:
            last = state.global_step == self.plan.points[-1]
            asked = [each for each in self.settings if last or each.name != NONE]
            right = measured(self.loaded, asked, self.plan.held_out)
            loss = sum(self.losses) / len(self.losses)
            self.points.append({"step": state.global_step, "loss": round(loss, 5), "right": right})
            self.losses.clear()


def fine_tuned(plan: Plan, way: str, setting: Setting, settings: Sequence[Setting], scratch: Path) -> dict[str, Any]:
    """Train the embedded model, and ask it along the way.

    Args:
        plan: what all have in common.
        way: "full" (every weight) or "lora" (on the decoder).
        setting: what it is trained under; "none" is the control.
        settings: what it is asked under; "none" only after the last step.
        scratch: where the trainer may write.

    Returns:
        `trained` and `way`, and `points`: `step`, `loss` (the mean since the point before), and `right`, of
        `measured`.
    """
    set_seed(plan.seed)
    loaded = models.load("embedded", "float32", "cpu", None)
    if way == "lora":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS)
        loaded = models.Loaded(get_peft_model(loaded.model, config), loaded.processor, loaded.decoder, loaded.tower)
    compressed = _Compressed(loaded, setting, settings, plan)
    trainer = _trainer(plan, way, loaded, scratch)
    trainer.add_callback(compressed)
    trainer.train()
    return {"trained": setting.name, "way": way, "points": compressed.points}


def _trainer(plan: Plan, way: str, loaded: models.Loaded, scratch: Path) -> Trainer:
    """A trainer of the kind that was asked for; gradient checkpointing, which prunes and reducers refuse, is off."""
    steps = plan.points[-1]
    common: dict[str, Any] = {
        "output_dir": str(scratch),
        "per_device_train_batch_size": plan.batch,
        "max_steps": steps,
        "learning_rate": plan.rates[way],
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, steps // 20),
        "weight_decay": 0.0,
        "seed": plan.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
    }
    if plan.trainer == "trl":
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(**common, bf16=False, gradient_checkpointing=False, max_length=None)
        data, processor = conversations(plan.questions), beginning(loaded.processor)
        trainer: Trainer = SFTTrainer(loaded.model, config, train_dataset=data, processing_class=processor)
    else:
        args = TrainingArguments(**common)
        trainer = Trainer(loaded.model, args, Collator(loaded), train_dataset=Answered(plan.questions))
    trainer.remove_callback(PrinterCallback)  # what it says of each step is in the curve
    return trainer
