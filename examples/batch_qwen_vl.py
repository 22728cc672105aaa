"""Batch inference with Qwen2.5-VL: eight pictures of different sizes, padded on the left, half of their tokens kept.

    python examples/batch_qwen_vl.py

Each row keeps half of its own tokens, and says in the batch what it says alone. The model here is a tiny random one
with Qwen's own classes, so its answers are words without sense; the line to change is marked.
"""

from PIL import Image
from stand_ins import qwen_vl

import vtc

SIZES = [(96, 64), (64, 96), (64, 64), (40, 120), (120, 40), (80, 48), (48, 80), (128, 128)]

# for a real checkpoint, in the place of the line behind this comment:
#   from transformers import AutoModelForImageTextToText, AutoProcessor
#   NAME = "Qwen/Qwen2.5-VL-7B-Instruct"
#   model = AutoModelForImageTextToText.from_pretrained(NAME, dtype="auto", device_map="auto")
#   processor = AutoProcessor.from_pretrained(NAME, padding_side="left")
model, processor = qwen_vl.tiny()


def ask(pictures: list[Image.Image], question: str) -> list[str]:
    """The answers to one question about each of some pictures, in one batch."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    batch = [[picture] for picture in pictures]
    inputs = processor(images=batch, text=[prompt] * len(batch), padding=True, return_tensors="pt").to(model.device)
    made = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


pictures = [Image.radial_gradient("L").resize(size).convert("RGB").rotate(7 * i) for i, size in enumerate(SIZES)]
with vtc.patched(model, "divprune:keep=0.5"):
    answers = ask(pictures, "what is in the picture ?")
    trace = vtc.trace(model)
    alone = [ask([picture], "what is in the picture ?")[0] for picture in pictures]

print(trace)
for row, (size, image, said) in enumerate(zip(SIZES, trace.images, answers)):
    print(f"row {row}, {size[0]} x {size[1]}: kept {len(image.kept())} of {len(image.source)}: {said}")
print(f"{sum(a == b for a, b in zip(answers, alone))} of {len(answers)} rows say alone what they say in the batch")
