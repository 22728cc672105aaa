"""Tiny models that real trainers fine-tune while patched, and the same steps by hand."""

import torch
from contract import EVERY, without_dropout
from families import Row
from peft import LoraConfig, get_peft_model
from test_prompt_end import ANSWERS, answered
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

import vtc

RATE, CLIP = 5e-2, 1.0


def model_for(family, way):
    """A model without dropout, all of whose weights learn, or LoRA on its decoder; the same each time."""
    torch.manual_seed(0)
    model = without_dropout(EVERY[family].build().train())
    if way == "lora":
        targets = r".*(language_model|text_model).*(q_proj|v_proj|up_proj|down_proj)"
        model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    return model


def batches(family, model, count):
    """Batches of two rows, an answer behind each; labels are -100 but for answers, the shorter padded on the right."""
    made = []
    for number in range(count):
        one, other, _ = EVERY[family].sizes
        rows = [Row((one,), 2 * number), Row((other,), 2 * number + 1)]
        prompts = EVERY[family].inputs(model, rows)
        inputs = answered(prompts, ANSWERS)
        labels = torch.full_like(inputs["input_ids"], -100)
        behind = prompts["input_ids"].shape[1]
        there = inputs["attention_mask"][:, behind:].bool()
        labels[:, behind:] = inputs["input_ids"][:, behind:].masked_fill(~there, -100)
        made.append({**inputs, "labels": labels})
    return made


def arguments(folder, **more):
    """Plain gradient descent at a constant rate: AdamW makes steps of noise where a gradient is nothing else."""
    given = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "learning_rate": RATE, "report_to": []}
    given |= {
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), use_cpu=True, remove_unused_columns=False, **{**given, **more})


class InOrder(Trainer):
    """Takes its batches as they come."""

    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer_of(model, given, folder, kind=InOrder, **more):
    """A trainer whose every sample is a batch by itself."""
    return kind(model, arguments(folder, **more), lambda one: dict(one[0]), train_dataset=given, eval_dataset=given)


def summed(model, batch):
    """The sum of the cross-entropy of the answers' tokens by the logits of a call without labels, and their number."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    with vtc.prompt_length(model, (labels != -100).int().argmax(1).tolist()):
        logits = model(**inputs).logits
    answer = labels[:, 1:] != -100
    return cross_entropy(logits[:, :-1][answer], labels[:, 1:][answer], reduction="sum"), int(answer.sum())


def by_hand(model, given, together=1):
    """Take steps on a patched model, gradients of `together` batches summed and clipped; returns their losses."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, losses = torch.optim.SGD(weights, lr=RATE), []
    for start in range(0, len(given), together):
        some = given[start : start + together]
        count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in some)
        losses.append(0.0)
        for batch in some:
            loss = summed(model, batch)[0] / count
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def weights_of(model):
    """What was trained, copied."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
