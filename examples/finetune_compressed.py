"""Fine-tuning while compressed: the decoder learns to answer from the few tokens that a method leaves it.

    python examples/finetune_compressed.py      # needs peft: pip install peft

LoRA on the decoder for a few steps, with a sixteenth of the visual tokens; then the loss of the answers to held-out
questions, compressed as before. Labels tell where the prompt ends, so no method looks at the answer when it chooses.
"""

import torch
from peft import LoraConfig, get_peft_model

import vtc
from vtc.eval import embedded

SPEC, STEPS, BATCH = "tome:keep=16", 6, 12

# for a real checkpoint, in the place of the line behind this comment:
#   from transformers import AutoModelForImageTextToText, AutoProcessor
#   NAME = "llava-hf/llava-1.5-7b-hf"
#   model = AutoModelForImageTextToText.from_pretrained(NAME, dtype="auto")
#   processor = AutoProcessor.from_pretrained(NAME)
model, processor = embedded.load()
torch.manual_seed(0)
decoder_only = r".*language_model.*(q_proj|v_proj|up_proj|down_proj)"
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=decoder_only))


def batch(samples: list[embedded.Sample]) -> dict:
    """Questions with their answers; labels are -100 but for the answers' tokens."""
    prompts = [embedded.prompt(processor, sample.question) for sample in samples]
    answers = [f" {sample.answer}{processor.tokenizer.eos_token}" for sample in samples]
    texts = [prompt + answer for prompt, answer in zip(prompts, answers)]
    inputs = processor(images=[s.image for s in samples], text=texts, padding=True, return_tensors="pt")
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, answer in enumerate(answers):  # padded on the left: answers stand at the end
        length = len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
        labels[row, -length:] = inputs["input_ids"][row, -length:]
    return {**inputs, "labels": labels}


held_out = batch(embedded.benchmark(18, "validation")[:])
train = embedded.benchmark(STEPS * BATCH, "train")
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
with vtc.patched(model, SPEC):
    with torch.no_grad():
        before = model(**held_out).loss.item()
    for step in range(STEPS):
        loss = model(**batch(train[step * BATCH : (step + 1) * BATCH])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}, {vtc.trace(model).tokens_per_layer[-1, 0]} visual tokens of 256")
    with torch.no_grad():
        after = model(**held_out).loss.item()
print(f"held-out loss under {SPEC}: {before:.3f} before, {after:.3f} after {STEPS} steps")
