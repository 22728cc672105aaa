"""Random stand-ins for a model at a given number of visual tokens: what methods are shown and are held up to.

The decoder has the shape of Qwen2-0.5B, the tower that of CLIP-L: 24 blocks of 16 heads, the projector reads the last
but one. All values are random, so what a method does only with real pictures (tokens that are much alike, attention
with peaks) is not seen here.
"""

import math
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.attention.scores import Attention
from vtc.attention.tap import Tap, probe
from vtc.method.patches import Picture
from vtc.method.prune import Rows
from vtc.method.units import Unit
from vtc.method.visual_tokens import Crops, Needs, Projection, VisualTokens
from vtc.model.layout import Grid, VisualInput
from vtc.model.parts import Parts

#: Qwen2-0.5B: layers, width, heads, heads of keys, width of the MLP.
LAYERS, WIDTH, HEADS, KEY_HEADS, MLP = 24, 896, 14, 2, 4864
#: CLIP-L: blocks, width, heads, width of the MLP, block whose output is projected, most tokens of a crop's side.
BLOCKS, TOWER_WIDTH, TOWER_HEADS, TOWER_MLP, FEATURE_LAYER, SIDE = 24, 1024, 16, 4096, -2, 24
#: Text tokens in front of and behind the visual ones.
BEFORE, AFTER = 10, 20


@dataclass(frozen=True)
class CropPlan:
    """How N tokens are cut into crops of side × side patches; the last crop may show fewer than that.

    Attributes:
        count: crops.
        side: of each.
    """

    count: int
    side: int

    @classmethod
    def of(cls, tokens: int) -> "CropPlan":
        """The fewest equal square crops of at most 24 × 24; the last not whole where that would take far more crops."""
        fewest = math.ceil(tokens / SIDE**2)
        for count in range(fewest, 4 * fewest + 1):
            if tokens % count == 0 and math.isqrt(tokens // count) ** 2 * count == tokens:
                return cls(count, math.isqrt(tokens // count))
        return cls(fewest, math.isqrt(math.ceil(tokens / fewest) - 1) + 1)


class Scene:
    """One image of `tokens` visual tokens, seen in crops, between 10 and 20 text tokens.

    Args:
        tokens: N.
        device: where everything is; bfloat16 on CUDA, else float32.

    Class attributes:
        kind: "image" or "video".
        counted: what a size is a number of.
        warm_up: the size on which everything is run once before anything is measured.
    """

    kind: ClassVar[str] = "image"
    counted: ClassVar[str] = "visual tokens"
    warm_up: ClassVar[int] = 48

    def __init__(self, tokens: int, device: torch.device):
        self.tokens, self.device = tokens, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.crops = CropPlan.of(tokens)
        self._random = torch.Generator(device).manual_seed(tokens)

    def random(self, *shape: int) -> Tensor:
        """Normally distributed numbers."""
        return torch.randn(shape, generator=self._random, dtype=self.dtype, device=self.device)

    # ---------------------------------------------------------------- the tower

    def parts(self, has_cls: bool) -> Parts:
        """The stand-in's parts: modules that can be told apart, and nothing inside."""
        layers, blocks = (tuple(nn.Identity() for _ in range(count)) for count in (LAYERS, BLOCKS))
        return Parts("a stand-in like CLIP-L", nn.Identity(), nn.Identity(), layers, blocks, has_cls, FEATURE_LAYER)

    @cached_property
    def tower_hidden(self) -> Tensor:
        """Tensor [crops, 1 + P, C]: the residual stream, CLS first."""
        return self.random(self.crops.count, 1 + self.crops.side**2, TOWER_WIDTH)

    @cached_property
    def tower_attention(self) -> Attention:
        """Of [crops, 16, 1 + P, 64]; the same in every block."""
        shape = self.crops.count, TOWER_HEADS, 1 + self.crops.side**2, TOWER_WIDTH // TOWER_HEADS
        query, key, value = (self.random(*shape) for _ in range(3))
        return Attention(query, key, shape[-1] ** -0.5, causal=False, value=value)

    def attention(self, rows: int, skip: int = 0) -> Attention:
        """`tower_attention` of `rows` rows from row `skip` on."""
        whole, some = self.tower_attention, slice(skip, skip + rows)
        assert whole.value is not None
        query, key, value = (x[:, :, some] for x in (whole.query, whole.key, whole.value))
        return Attention(query, key, whole.scaling, causal=False, value=value)

    def of_tokens(self, values: Tensor, prefix: int) -> Tensor:
        """Values of the tower's rows [crops, prefix + P, ...] as values of the image's tokens [1, N, ...]."""
        return values[:, prefix:].flatten(0, 1)[None, : self.tokens]

    def picture(self) -> Picture:
        """Pixels of a cell for each token, as Qwen3-VL's tower is given them."""
        side = self.crops.side
        return Picture(self.random(1, math.ceil(self.tokens / side), side, 4, 3, 2 * 16 * 16), (0.5,) * 3)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The whole crops, and the row of tokens that is left."""
        side = self.crops.side
        whole, rest = divmod(self.tokens, side**2)
        grids = (Grid(0, whole, side, side),) if whole else ()
        return grids + ((Grid(whole * side**2, 1, 1, rest),) if rest else ())

    @property
    def unit(self) -> Unit:
        """All tokens, as what one decision is about."""
        return Unit((0,), (None,), self.grids, self.kind, 0, torch.arange(BEFORE, BEFORE + self.tokens))

    # ---------------------------------------------------------------- what a selector sees

    def features(self) -> Tensor:
        """Tensor [1, N, D], the visual tokens."""
        return self.random(1, self.tokens, WIDTH)

    @cached_property
    def _features(self) -> Tensor:
        """The same ones for every method."""
        return self.features()

    def token_crops(self) -> Crops:
        """Which crop each token was seen in."""
        place, area = torch.arange(self.tokens), self.crops.side**2
        return Crops(place // area, place % area, self.crops.count, (self.crops.side,) * 2)

    def visual(self, needs: Needs, prefix: int) -> VisualTokens:
        """All that a selector asked for but what the tower's attention gives: that is to be captured."""
        asked = needs.received or needs.cls or needs.keys or needs.hidden or needs.observe or needs.projection
        return VisualTokens(
            features=self._features,
            grids=self.grids,
            separators=torch.zeros(self.tokens, dtype=torch.bool),
            kind=self.kind,
            hidden=dict.fromkeys(needs.hidden, self.random(1, self.tokens, TOWER_WIDTH)) if needs.hidden else {},
            crops=self.token_crops() if asked else None,
            projection=self.projection(prefix) if needs.projection else None,
            question=(torch.arange(AFTER, device=self.device),) if needs.text else (),
            text=(self.random(AFTER, WIDTH),) if needs.text else (),
        )

    def projection(self, prefix: int) -> Projection | None:
        """The projector and what it reads; None where several patches make a token."""
        projector = nn.Sequential(nn.Linear(TOWER_WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        cls = self.random(1, self.crops.count, TOWER_WIDTH) if prefix else None
        return Projection(self.random(1, self.tokens, TOWER_WIDTH), cls, projector.to(self.device, self.dtype))

    # ---------------------------------------------------------------- what a prune sees

    def decoder_attention(self, length: int) -> Attention:
        """Of a decoder layer that sees `length` tokens."""
        dim = WIDTH // HEADS
        query, key, value = (self.random(1, heads, length, dim) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
        return Attention(query, key, dim**-0.5, value=value)

    @cached_property
    def _decoder_hidden(self) -> tuple[Tensor, Tensor]:
        before, after = (self.random(1, BEFORE + self.tokens + AFTER, WIDTH) for _ in range(2))
        return before, after

    def decoder_hidden(self, length: int) -> tuple[Tensor, Tensor]:
        """What a module of a decoder layer that sees `length` tokens takes and gives, [1, length, D]."""
        before, after = self._decoder_hidden
        return before[:, :length], after[:, :length]

    @cached_property
    def _probed(self) -> "DecoderLayer":
        return DecoderLayer(self)

    def tapped(self, probe: bool) -> AbstractContextManager:
        """While open, `rows` can be asked for q and k, if `probe`."""
        return closing(Tap({self._probed.layer.self_attn: lambda attention, kwargs: None})) if probe else nullcontext()

    def rows(self, layer: int, visual: int, probed: bool) -> Rows:
        """The sequence in front of decoder layer `layer`, where `visual` visual tokens are left."""
        place = torch.arange(BEFORE + visual + AFTER, device=self.device)[None]
        (hidden, _), instruction = self.decoder_hidden(place.shape[1]), place >= BEFORE + visual
        call: Any = self._probed.asked(hidden) if probed else None
        return Rows(
            layer,
            hidden,
            (place >= BEFORE) & ~instruction,
            torch.ones_like(instruction),
            instruction,
            call,
            tail=AFTER,
            images=(VisualInput(0, self.kind, torch.arange(BEFORE, BEFORE + self.tokens), self.grids),),
            origin=torch.where(instruction, place + self.tokens - visual, place),
        )


class DecoderLayer:
    """One random decoder layer of the shape of Qwen2-0.5B."""

    def __init__(self, scene: Scene):
        from transformers import Qwen2Config
        from transformers.models.qwen2 import modeling_qwen2 as qwen2

        config = Qwen2Config(  # type: ignore[call-arg]
            vocab_size=1,
            hidden_size=WIDTH,
            intermediate_size=MLP,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KEY_HEADS,
            attn_implementation="sdpa",
        )
        self.layer: Any = qwen2.Qwen2DecoderLayer(config, 0).eval().to(scene.device, scene.dtype)
        self.rotary = qwen2.Qwen2RotaryEmbedding(config).to(scene.device)

    def arguments(self, hidden: Tensor) -> dict[str, Any]:
        """What a layer takes beside `hidden` [1, n, D]: no mask, since nothing is padded."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        return {"attention_mask": None, "position_embeddings": self.rotary(hidden, positions)}

    def asked(self, hidden: Tensor) -> Any:
        """What gives the `Attention` that the layer would have on `hidden` when it is called."""
        arguments = self.arguments(hidden)
        return lambda: probe(self.layer, self.layer.self_attn, hidden, **arguments)


class Yardstick:
    """One decoder layer and one tower block, to be timed on the tokens of a scene."""

    def __init__(self, scene: Scene):
        from transformers import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPEncoderLayer

        config = CLIPVisionConfig(  # type: ignore[call-arg]
            hidden_size=TOWER_WIDTH,
            intermediate_size=TOWER_MLP,
            num_attention_heads=TOWER_HEADS,
            attn_implementation="sdpa",
        )
        self._block: Any = CLIPEncoderLayer(config).eval().to(scene.device, scene.dtype)
        self._layer = DecoderLayer(scene)

    def decoder_layer(self, scene: Scene) -> Any:
        """What runs one layer over all visual and text tokens when it is called."""
        hidden = scene.random(1, BEFORE + scene.tokens + AFTER, WIDTH)
        arguments = self._layer.arguments(hidden)
        return lambda: self._layer.layer(hidden, **arguments)

    def tower_block(self, scene: Scene) -> Any:
        """What runs one block over all crops when it is called."""
        return lambda: self._block(scene.tower_hidden, attention_mask=None)


def stand_in_adapter(parts: Parts) -> Any:
    """What the tower's listeners ask of a model: its parts, whose blocks are their own attention."""
    return SimpleNamespace(parts=parts, attention=lambda block: block)
