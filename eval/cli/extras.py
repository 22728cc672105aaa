"""Which extra of vtc brings a package that is not there. Imports the standard library alone."""

#: Name of a package as it is imported -> the extra that brings it.
EXTRAS = {
    **dict.fromkeys(("accelerate", "datasets", "matplotlib", "PIL", "skimage", "sklearn", "tqdm"), "eval"),
    **dict.fromkeys(("decord", "qwen_vl_utils"), "video"),
    "gradio": "demo",
    **dict.fromkeys(("peft", "trl"), "train"),
    "ray": "ray",
    "vllm": "vllm",
}


def way_to(error: ModuleNotFoundError) -> str | None:
    """What is missing and how to get it, as a sentence; None where no extra of vtc brings it."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    return f"{name} is not installed; pip install 'vtc[{EXTRAS[name]}]'"
