"""Pages of documents and screens with Qwen2.5-VL: patches that repeat their neighbours never enter the tower.

    python examples/pixelprune_pages.py

For each kind of page the visual tokens that are kept, exactly (threshold 0) and up to a threshold. Each page is then
made again of nothing but the kept cells, and held against the page. The model here is a tiny random one with Qwen's
own classes and patches, so what it says has no sense, and only tokens are told; the line to change is marked.
"""

import numpy as np
from stand_ins import qwen_vl

import vtc
from vtc.eval.media.pages import KINDS, page, restored

THRESHOLDS = [0.0, 15.5 / 255]

# for a real checkpoint, in the place of the line behind this comment:
#   from transformers import AutoModelForImageTextToText, AutoProcessor
#   NAME = "Qwen/Qwen3-VL-2B-Instruct"
#   model = AutoModelForImageTextToText.from_pretrained(NAME, dtype="auto", device_map="auto")
#   processor = AutoProcessor.from_pretrained(NAME)
model, processor = qwen_vl.tiny(patch=14, most=1024**2)

vision = model.config.vision_config
side = vision.patch_size * vision.spatial_merge_size  # of a visual token, in pixels
content = [{"type": "image"}, {"type": "text", "text": "what is in the picture ?"}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

for kind in KINDS:
    picture = page(kind)
    inputs = processor(images=[picture], text=[prompt], return_tensors="pt").to(model.device)
    for threshold in THRESHOLDS:
        with vtc.patched(model, f"pixelprune:threshold={threshold}"):
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
            (image,) = vtc.trace(model).images
        kept, given = image.kept(), len(image.source)
        again = restored(picture, kept, side, threshold)
        error = int(np.abs(np.asarray(again, dtype=int) - np.asarray(picture, dtype=int)).max())
        assert error <= 255 * threshold
        share = f"kept {len(kept)} of {given} tokens ({len(kept) / given:.0%})"
        print(f"{kind}, threshold {255 * threshold:g}/255: {share}, made again within {error}/255")
