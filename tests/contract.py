"""What the contract tests share: models, the methods that a family takes, and comparisons."""

from functools import cache

import flash_stand_in
import torch
from families import FAMILIES, Family, Row, scenario
from families_more import MORE, SURVEYED
from releases import skip_broken

import vtc
from vtc.model.layout import Grid

#: Families that all tests of the tiny families hold, and with them those that are only surveyed.
HELD = {**FAMILIES, **MORE}
EVERY = {**HELD, **SURVEYED}
ATTENTIONS = ("sdpa", "eager", flash_stand_in.NAME)

METHODS = vtc.list_methods()

#: Where a method's name and keep are not enough: more fields that every family takes.
FIELDS = {"fastv": ",layer=2", "transprune": ",layers=(1,2,3)", "todre": ",threshold=2.0", "dycoke_decode": ",layer=2"}
COMPOSED = (
    "divprune:keep=0.6+fastv:layer=2,keep=0.5",
    "pool:keep=0.5+transprune:keep=0.4,layers=(1,3,4)",
    "tome:keep=0.6+fastv:layer=3,keep=0.5",
    "flowcut:keep=0.3,stages=both",
    "hiprune:keep=0.7+sparsevlm:keep=0.4",
    "divprune:keep=0.7+spatten:keep=0.5,keep_heads=0.5",
    "fastv:keep=0.6,layer=1+holitom_inner:keep=0.5,layer=3",
)

#: Methods that read the question behind the picture.
ASKED = {"cdpruner", "mmtok", "recoverable", "trim"}
#: Methods that read keys as rotary embedding turned them: rows are alike where each is numbered from its own first
#: token, as `generate` does, and not all models do by themselves.
NUMBERED = {"dart"}
#: Models of which `generate` counts padding too.
COUNTS_PADDING = {"exaone4_5"}

#: Methods that leave images as they are, and act on videos alone; of flashvid the stage in front of the decoder.
ON_VIDEOS = {"dycoke", "evs", "fastvid", "flashvid", "llava_scissor", "sttm", "sttm_outer", "v_cast", "vidcom2"}
#: Those that leave videos as they are.
ON_PICTURES = {"pixelprune"}
#: Methods that see pixels, and those of the families of the matrix whose towers are given them patch by patch.
SEE_PIXELS, PATCH_BY_PATCH = {"pixelprune"}, {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"}
#: Methods without a keep: a setting at which something goes, and one at which nothing does.
SETTINGS = {
    "llava_scissor": ("tau=0.0", "tau=1.0"),
    # cells of random pixels are all unlike, and about this far apart
    "pixelprune": ("threshold=0.564,metric=mean,image_std=(0.5,0.5,0.5)", "threshold=0.0"),
    "prunevid": ("tau=0.0,inner_keep=0.5", "tau=1.0,cluster_ratio=1.0,inner_keep=1.0"),
    "sttm": ("tau_s=0.0,tau_t=1e-6,root=0", "root=-1,tau_t=None"),
    "sttm_outer": ("tau_s=0.0,tau_t=1e-6,root=0", "root=-1,tau_t=None"),
}
#: Prunes that remove nothing of the prompt: decode steps see less.
IN_STEPS = {"dycoke_decode"}
#: Tokens that are generated where rows are compared.
NEW = 3

torch.set_num_threads(1)


def model_of(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32):
    """A tiny random model, built once per process; tests leave it as they found it."""
    skip_broken(family, attention)
    return _built(family, attention, dtype)


@cache
def _built(family: str, attention: str, dtype: torch.dtype):
    return EVERY[family].build(attn=attention, dtype=dtype)


def batch(family: str, name: str = "ragged", attention: str = "sdpa", **options):
    """The family's tiny model, and the inputs of a scenario."""
    model = model_of(family, attention)
    return model, EVERY[family].inputs(model, scenario(EVERY[family], name), **options)


def ran(family: str, method, name: str = "single", attention: str = "sdpa", **options):
    """The inputs of a scenario, the model's output under `method` (None: untouched), and the trace."""
    model, inputs = batch(family, name, attention)
    with torch.no_grad():
        if method is None:
            return inputs, model(**inputs, **options), None
        with vtc.patched(model, method):
            return inputs, model(**inputs, **options), vtc.trace(model)


def spec_of(method: str, family: str, keep: float = 0.5) -> str:
    """The method at `keep`, with what the family needs: `pivot=mean` where its tower has no CLS token."""
    if method == "none":
        return method
    if method == "todre_stage2":  # all or nothing
        return f"{method}:threshold={0 if keep == 1.0 else 2.0}"
    if method in SETTINGS:
        return f"{method}:{SETTINGS[method][keep == 1.0]}"
    if method == "vtw":  # all go, whatever is asked for
        return "none" if keep == 1.0 else method
    if method == "atp" and keep < 1:  # thresholds of another model: at 0.5 they may let everything through
        keep /= 25
    spec = f"{method}:keep={keep}{FIELDS.get(method, '')}"
    if method in ("kcenter", "todre") and not has_cls(family):
        spec += ",pivot=mean"
    if method == "lazyllm" and slides(family):
        spec += ",revive=False"
    if method in IN_STEPS and slides(family):
        return "none"
    return spec


def takes(family: str, method: str) -> bool:
    """Whether a family of the matrix takes a method; the others refuse it."""
    return method not in SEE_PIXELS or family in PATCH_BY_PATCH


def taken(cell: dict) -> bool:
    """Whether the family of a cell takes the method, or the selector or reducer, in it."""
    return takes(cell["family"], cell.get("method") or cell.get("outer", ""))


@cache
def slides(family: str) -> bool:
    """Whether a layer of the family's decoder keeps only the newest tokens."""
    decoder = model_of(family).config.get_text_config()
    kinds = getattr(decoder, "layer_types", None) or ()
    return any("sliding" in kind or "chunked" in kind for kind in kinds) or bool(getattr(decoder, "sliding_window", 0))


@cache
def has_cls(family: str) -> bool:
    names = ("class_embedding", "cls_token")
    modules = model_of(family).modules()
    return any(getattr(module, name, None) is not None for module in modules for name in names)


def specs(family: str, keep: float = 0.5) -> list[str]:
    """Every registered method, so that a new one is tested without a line here, and two compositions."""
    return [spec_of(method, family, keep) for method in METHODS]


def without_dropout(model):
    """The model, in training as it is, with nothing left to chance."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


def each_alone(family: Family, model, rows: list[Row]):
    """The inputs of each row as a batch of one."""
    return [family.inputs(model, [row]) for row in rows]


def refusal(family: str, spec: str) -> str | None:
    """The sentence with which the family refuses the methods of `spec`, if it does."""
    try:
        with vtc.patched(model_of(family), spec):
            return None
    except ValueError as error:
        return str(error)


def check_rows(family: Family, model, spec: str, rows: list[Row], new: int = NEW, compared=range):
    """Patched, rows of a batch equal their own batch-1 run, and the trace counts what was planned.

    So do the `new` tokens that are generated; 0: the logits behind the prompt alone. `compared` chooses of so many rows
    those that are run alone, by default all.
    """
    inputs = family.inputs(model, rows)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), vtc.patched(model, spec):
        output = model(**inputs)
        trace = vtc.trace(model)
        assert output.logits.shape[:2] == inputs["input_ids"].shape
        assert trace.original_tokens.tolist() == [sum(counts) for counts in family.visual_tokens(rows)]
        fewest = trace.tokens_per_layer.amin(dim=0)
        for row in range(len(rows)):
            if any(acts_on(spec, image.source.grids) for image in trace.images if image.row == row):
                assert fewest[row] < trace.original_tokens[row], f"row {row}"
        last = output.logits[:, -1]
        if NUMBERED & {part.partition(":")[0] for part in spec.split("+")}:
            if model.config.model_type in COUNTS_PADDING:
                places = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
                last = model(**inputs, position_ids=places).logits[:, -1]
            else:
                last = stepwise(model, inputs, new=1).logits[0]
        if not new:
            for index in compared(len(rows)):
                alone = model(**family.inputs(model, [rows[index]])).logits[0, -1]
                torch.testing.assert_close(last[index], alone, atol=2e-4, rtol=1e-4)
            return trace
        tokens = model.generate(**inputs, max_new_tokens=new, do_sample=False)
        assert torch.equal(tokens[:, :length], inputs["input_ids"])
        check_each_alone(family, model, rows, last, tokens[:, -new:], compared)
    return trace


def check_each_alone(
    family: Family, model, rows: list[Row], logits: torch.Tensor, tokens: torch.Tensor, compared=range
):
    """The last logits of a prompt and the tokens generated behind it, row by row, are those of the row by itself."""
    for index in compared(len(rows)):
        again = stepwise(model, family.inputs(model, [rows[index]]), new=tokens.shape[1])
        torch.testing.assert_close(logits[index], again.logits[0][0], atol=2e-4, rtol=1e-4)
        assert torch.equal(tokens[index], again.sequences[0, -tokens.shape[1] :]), f"row {index}"


def greedy(model, inputs: dict, new: int = 4, **options):
    """What `generate` makes without sampling: prompt and new tokens."""
    return model.generate(**inputs, max_new_tokens=new, do_sample=False, **options)


def stepwise(model, inputs: dict, new: int = 4, **options):
    """The same with the cache and the logits of each step, as the model gave them."""
    return greedy(model, inputs, new, return_dict_in_generate=True, output_logits=True, **options)


def acts_on(spec: str, grids: tuple[Grid, ...]) -> bool:
    """Whether a spec must remove something of an image or video with these grids."""
    names = {part.partition(":")[0] for part in spec.split("+")}
    names -= {"none", *IN_STEPS}
    return bool(names) and not names <= (ON_VIDEOS if grids[0].t == 1 else ON_PICTURES)


def extended(inputs: dict, more_ids: torch.Tensor) -> dict:
    """`inputs` (batch of one) with text tokens appended."""
    length, added = inputs["input_ids"].shape[1], more_ids.shape[1]
    longer = dict(inputs)
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            fill = inputs[name].new_full((1, added), int(name == "attention_mask"))
            longer[name] = torch.cat([inputs[name][:, :length], fill], dim=1)
    longer["input_ids"] = torch.cat([inputs["input_ids"], more_ids], dim=1)
    return longer


def state_of(model: torch.nn.Module) -> list:
    """Everything that a patch could leave behind."""
    state = []
    for name, module in model.named_modules():
        hooks = [list(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks")]
        config = getattr(getattr(module, "config", None), "_attn_implementation", None)
        state.append((name, sorted(vars(module)), hooks, config, type(module)))
    return state
