"""A video that comes in pieces over the turns of a chat: each piece is compressed as if it had come alone."""

import dataclasses

import pytest
import torch
from contract import EVERY, METHODS, greedy, model_of, spec_of
from covering import product
from families import Row
from releases import HERE

import vtc
from vtc.calls.outputs import Output
from vtc.method.registry import method_class

pytestmark = pytest.mark.usefixtures("no_grad")
CACHE = "cache" if HERE.release[:2] >= (5, 24) else "past_key_values"
LLAVAS = ["llava_onevision_video", "llava_next_video_video", "video_llava_video"]
QWENS = ["qwen2_vl_video", "qwen2_5_vl_video", "qwen3_vl_video"]
FAMILIES = [*LLAVAS, *QWENS, "internvl_video"]
SELECTORS = [name for name in METHODS if method_class(name).kind == "selector" and not name.startswith("test-")]
#: Pieces of a stream, and tokens of the answer to each.
PIECES, NEW = 3, 2


def spec_for(family: str, method: str) -> str:
    """At half of the tokens, alone; frames that reach the model as images of their own share the piece's budget."""
    alone = {
        **dict.fromkeys(("flashvid", "holitom", "prunevid"), ",inner=False"),
        "todre": ",threshold=0",
        "vscan": ",later_keep=1.0",
    }  # their prunes see all turns
    spec = spec_of(method, family)
    spec = spec.replace(",threshold=2.0", "") + alone.get(method, "")
    return spec + (",per=row" if family == "internvl_video" and method != "none" else "")


def kept() -> list[list[int]]:
    """What the last prefill kept of each video, or image."""
    return [image.kept(0).tolist() for image in vtc.trace(Stream.model).images]


class Stream:
    """One chat: in each turn come more frames, with text around them.

    Attributes:
        pieces: the inputs of each by itself.
        ids: all that was said so far.
        cache: of it.
    """

    model: torch.nn.Module

    def __init__(self, family: str):
        tiny = EVERY[family]
        Stream.model = model_of(family)
        self.pieces = [tiny.inputs(self.model, [Row((tiny.sizes[i],), 3 + i)]) for i in range(PIECES)]
        self.ids = torch.zeros(1, 0, dtype=torch.long)
        self.kinds = self.ids.int()
        self.cache, self.turns = None, 0

    def fed(self) -> dict:
        """The next piece behind all that was said; positions of several axes are told, as transformers asks for."""
        piece = self.pieces[self.turns]
        self.turns += 1
        self.ids = torch.cat([self.ids, piece["input_ids"]], dim=1)
        given = piece | {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids)}
        if "mm_token_type_ids" in piece:
            missing = self.ids.shape[1] - self.kinds.shape[1] - piece["input_ids"].shape[1]
            self.kinds = torch.nn.functional.pad(self.kinds, (0, missing))
            self.kinds = torch.cat([self.kinds, piece["mm_token_type_ids"].int()], dim=1)
            given |= {"mm_token_type_ids": self.kinds, "position_ids": self.positions()}
        return given | ({} if self.cache is None else {CACHE: self.cache})

    def so_far(self, *names: str) -> dict:
        """Pixels, grids and times of all pieces until now."""
        shown = self.pieces[: self.turns]
        return {name: torch.cat([piece[name] for piece in shown]) for name in names if name in shown[0]}

    def positions(self) -> torch.Tensor:
        grids = self.so_far("video_grid_thw", "second_per_grid_ts")
        mask = torch.ones_like(self.ids)
        turned = self.model.model.get_rope_index(self.ids, mm_token_type_ids=self.kinds, attention_mask=mask, **grids)
        return torch.cat([torch.arange(self.ids.shape[1])[None, None], turned[0]])

    def turn(self, **options) -> torch.Tensor:
        """Show the next piece and generate an answer; the logits of its first token."""
        out = greedy(self.model, self.fed(), NEW, output_logits=True, return_dict_in_generate=True, **options)
        self.ids, self.cache = out.sequences, Output(out).cache
        return out.logits[0]

    def forward(self) -> torch.Tensor:
        """Show the next piece by a call of the model, with the new tokens alone; nothing is generated."""
        before = self.ids.shape[1]
        given = self.fed()
        for name in ("input_ids", "mm_token_type_ids", "position_ids"):
            if name in given:
                given[name] = given[name][..., before:]
        out = self.model(**given, use_cache=True)
        self.cache = Output(out).cache
        return out.logits[:, -1]


def alone(family: str) -> list[list[list[int]]]:
    """What is kept of each piece where nothing was before it."""
    found = []
    for piece in Stream(family).pieces:
        Stream.model(**piece)
        found.append(kept())
    return found


@product(family=FAMILIES, method=SELECTORS, each="value")
def test_each_piece_keeps_what_it_keeps_alone(family, method):
    stream = Stream(family)
    with vtc.patched(stream.model, spec_for(family, method)):
        expected = alone(family)
        held = 0
        for piece, wanted in zip(stream.pieces, expected):
            before = [] if stream.cache is None else [layer.keys.clone() for layer in stream.cache.layers]
            stream.turn()
            assert kept() == wanted
            trace = vtc.trace(stream.model)
            visual = sum(len(image.source) for image in trace.images)
            left = sum(map(len, wanted))
            assert trace.original_tokens.tolist() == [visual] and trace.tokens_per_layer[0].tolist() == [left]
            assert method == "none" or left < visual or method in ("prumerge", "evs")
            held += piece["input_ids"].shape[1] - visual + left + (NEW - 1 if not before else NEW)
            for layer, keys in zip(stream.cache.layers, before):
                assert torch.equal(layer.keys[:, :, : keys.shape[2]], keys), "earlier pieces stay as they are"
            assert {layer.keys.shape[2] for layer in stream.cache.layers} == {held}


@product(family=FAMILIES, method=SELECTORS, each="value")
def test_so_it_is_where_frames_are_fed_by_calls_one_after_another(family, method):
    stream = Stream(family)
    with vtc.patched(stream.model, spec_for(family, method)):
        for wanted in alone(family):
            stream.forward()
            assert kept() == wanted


#: Selectors that change no token that they keep.
DROPPING = [name for name in ("evs", "vidcom2", "divprune", "frame_stride") if name in SELECTORS]


def untouched(stream: Stream, survivors: list[torch.Tensor], packed: bool) -> torch.Tensor:
    """The last logits of the untouched decoder that is fed with the survivors of all turns at once.

    Args:
        stream: behind its last turn, before an answer is added.
        survivors: of each turn, the places that are left among all that was said.
        packed: whether they are numbered anew, where positions have one axis.
    """
    decoder, seen = stream.model.model.language_model, {}
    handle = decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    shown = stream.so_far("pixel_values_videos", "pixel_values", "video_grid_thw", "second_per_grid_ts")
    kinds = {"mm_token_type_ids": stream.kinds} if stream.kinds.numel() else {}
    stream.model(input_ids=stream.ids, attention_mask=torch.ones_like(stream.ids), **shown, **kinds)
    handle.remove()
    places = torch.cat(survivors)
    numbers = torch.arange(len(places)) if packed else places
    ones = torch.ones(1, len(places), dtype=torch.long)  # without it, gaps of positions would part samples
    embeds = seen["inputs_embeds"][:, places]
    given = {"inputs_embeds": embeds, "position_ids": numbers[None], "attention_mask": ones}
    if stream.kinds.numel():
        given["position_ids"] = stream.positions()[..., places]
    if seen.get("deepstack_visual_embeds") is not None:
        visual = seen["visual_pos_masks"][0].nonzero()[:, 0]
        left = torch.isin(visual, places)
        given["visual_pos_masks"] = seen["visual_pos_masks"][:, places]
        given["deepstack_visual_embeds"] = [features[left] for features in seen["deepstack_visual_embeds"]]
    return stream.model.lm_head(decoder(**given, use_cache=False).last_hidden_state[:, -1])


@pytest.mark.parametrize("positions", ["packed", "original"])
@pytest.mark.parametrize("method", DROPPING)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_is_the_untouched_decoder_on_all_that_was_kept(family, method, positions):
    """Positions go on where the turn before ended, and what it kept is still seen."""
    stream, spec = Stream(family), f"{spec_for(family, method)},positions={positions}"
    with vtc.patched(stream.model, spec):
        wanted, survivors, logits = alone(family), [], []
        for number in range(PIECES):
            before = max(stream.ids.shape[1] - 1, 0)  # an answer's last token is fed with the next turn
            logits.append(stream.turn())
            left = torch.ones(stream.ids.shape[1] - 1 - before, dtype=torch.bool)
            for image, keeps in zip(vtc.trace(stream.model).images, wanted[number], strict=True):
                left[image.source.positions] = False
                left[image.source.positions[keeps]] = True
            survivors.append(left.nonzero()[:, 0] + before)
    stream.ids, survivors[-1] = stream.ids[:, :-NEW], survivors[-1][: 1 - NEW]
    expected = untouched(stream, survivors, positions == "packed")
    torch.testing.assert_close(logits[-1], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("method", DROPPING)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_chunks_is_compressed_piece_by_piece_too(family, method):
    whole, chunks = Stream(family), Stream(family)
    with vtc.patched(whole.model, spec_for(family, method)):
        for wanted in alone(family):
            logits = whole.turn()
            torch.testing.assert_close(chunks.turn(prefill_chunk_size=5), logits, atol=1e-4, rtol=1e-4)
            assert kept() == wanted and torch.equal(whole.ids, chunks.ids)


#: Specs of methods that leave more where more happens.
EVENTFUL = ["holitom:keep=0.5,inner=False"] + [
    f"{name}:threshold=0.5"
    for name in ("evs",)
    if any(field.name == "threshold" for field in dataclasses.fields(method_class(name)))
]


@pytest.mark.parametrize("spec", EVENTFUL)
def test_the_share_that_is_left_tells_where_something_happens(spec):
    stream = Stream("llava_onevision_video")
    still = stream.pieces[1]["pixel_values_videos"]
    still[:] = still[:, :1]
    shares = []
    with vtc.patched(stream.model, spec):
        for _ in range(PIECES):
            stream.turn()
            trace = vtc.trace(stream.model)
            shares.append(float(trace.tokens_per_layer[0, 0] / trace.original_tokens[0]))
    assert shares[1] < min(shares[0], shares[2]), shares
