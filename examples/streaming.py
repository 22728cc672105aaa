"""A video that comes in pieces: each is compressed by itself, and asked about as soon as it is there, in one chat.

    python examples/streaming.py [FILE or the number of a camera]

A file is read two seconds at a time, a camera by OpenCV, where that is installed. Without either two bundled clips
come, and between them a piece in which nothing happens. What was kept of earlier pieces stays in the cache. With
`holitom`, the share that is left of a piece tells how much happens in it.
"""

import sys
from collections.abc import Iterator

import numpy as np
import torch

import vtc
from vtc.eval import clips
from vtc.eval.media import video

FRAMES, SECONDS = 8, 2.0
SPEC = "holitom:keep=0.5,inner=False,positions=original"

# for a real checkpoint, in the place of the line behind this comment:
#   from transformers import AutoModelForImageTextToText, AutoProcessor
#   NAME = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
#   model = AutoModelForImageTextToText.from_pretrained(NAME, dtype="auto")
#   processor = AutoProcessor.from_pretrained(NAME)
model, processor = clips.load()


def pieces(source: str | None) -> Iterator[tuple[np.ndarray, str]]:
    """Frames [F, H, W, 3], and what is asked about them."""
    if source is None:
        first, second = clips.benchmark(2)
        still = first.frames[-1:].repeat(FRAMES, axis=0)
        asked = [(first.frames, first.question), (still, first.question), (second.frames, second.question)]
        yield from asked
    elif source.isdecimal():
        import cv2

        camera = cv2.VideoCapture(int(source))
        every = max(1, round(SECONDS * (camera.get(cv2.CAP_PROP_FPS) or 30) / FRAMES))
        while camera.isOpened():
            shown = [camera.read() for _ in range(FRAMES * every)][::every]
            if not all(there for there, _ in shown):
                return
            yield np.stack([frame[..., ::-1] for _, frame in shown]), "What moves?"
    else:
        for start in np.arange(0, video.seconds(source) or SECONDS, SECONDS):
            yield video.read(source, FRAMES, start, start + SECONDS).frames, "What moves?"


ids, past = torch.zeros(1, 0, dtype=torch.long), {}
with vtc.patched(model, SPEC):
    for frames, question in pieces(sys.argv[1] if len(sys.argv) > 1 else None):
        new = processor(videos=[frames], text=[clips.prompt(processor, question)], return_tensors="pt")
        ids = torch.cat([ids, new.pop("input_ids")], dim=1)  # all that was said; of the frames, the new ones
        given = {**new, "input_ids": ids, "attention_mask": torch.ones_like(ids), **past}
        made = model.generate(**given, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        answer = processor.decode(made.sequences[0, ids.shape[1] :], skip_special_tokens=True)
        ids, past = made.sequences, {"past_key_values": made.past_key_values}
        trace = vtc.trace(model)  # of the prefill of this piece
        kept, of = int(trace.tokens_per_layer[-1].sum()), int(trace.original_tokens.sum())
        print(f"kept {kept:>3} of {of} tokens ({kept / of:.0%}): {question} {answer}")
