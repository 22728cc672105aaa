"""What methods keep of each frame of a video: every frame a little, whole frames, or what changes.

    python examples/video.py

One clip of the bundled benchmark, eight frames of 64 tokens and a newline, at an eighth of them. `evs` keeps the first
frame and what changes most after it; `holitom` merges what stands still over time, and half of the rest in the decoder.
"""

import torch

import vtc
from vtc.eval import clips

SPECS = ("none", "frame_stride:keep=0.125", "divprune:keep=0.125", "evs:keep=0.125", "holitom:keep=0.125")

# for a real checkpoint, in the place of the line behind this comment:
#   from transformers import AutoModelForImageTextToText, AutoProcessor
#   NAME = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
#   model = AutoModelForImageTextToText.from_pretrained(NAME, dtype="auto")
#   processor = AutoProcessor.from_pretrained(NAME)
model, processor = clips.load()

sample = clips.benchmark(4)[1]
inputs = processor(videos=[sample.frames], text=[clips.prompt(processor, sample.question)], return_tensors="pt")
print(f"{sample.question} ({sample.answer})")
for spec in SPECS:
    with vtc.patched(model, spec):
        made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        (video,) = vtc.trace(model).images
    kept = video.kept()  # those that leave the last removal, numbered within the video
    (grid,) = video.source.grids  # the numbers of its tokens, frame by frame
    frames = [int(torch.isin(frame, kept).sum()) for frame in grid.tokens()]
    answer = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{spec:<24} kept {len(kept):>3} of {len(video.source)}, in each frame {frames}: {answer}")
