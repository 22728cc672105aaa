"""Tiny random models whose decoder is a state-space one: a VLM around Mamba or Mamba-2, and nemotron_h_omni."""

from typing import Any, ClassVar

import torch
import transformers
from tiny_base import END, IMAGE, START, VOCAB, Family, images, randomize
from torch import Tensor, nn
from transformers import Mamba2Config, Mamba2Model, MambaConfig, MambaModel

#: Whether this release of transformers has the family.
HAS_NEMOTRON = hasattr(transformers, "NemotronH_Omni_Reasoning_V3_Config")


class MambaVLM(nn.Module):
    """Placeholder mask, then decoder: the smallest model that calls a Mamba decoder as a VLM of transformers would."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.config = decoder.config
        self.language_model = decoder

    def get_placeholder_mask(self, visual: Tensor, inputs_embeds: Tensor, image_features: Any = None) -> Tensor:
        return visual[..., None].expand_as(inputs_embeds)

    def forward(
        self,
        inputs_embeds: Tensor,
        visual: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache_params: Any = None,
        **kwargs: Any,
    ) -> Any:
        if visual is not None:
            self.get_placeholder_mask(visual, inputs_embeds=inputs_embeds, image_features=inputs_embeds[visual])
        given = {"attention_mask": attention_mask, "cache_params": cache_params, "use_cache": True, **kwargs}
        return self.language_model(inputs_embeds=inputs_embeds, **given)


def mamba(version: int = 1, layers: int = 6, seed: int = 0, **more: Any) -> MambaVLM:
    """A model around Mamba (1) or Mamba-2 (2), width 32."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": layers, "state_size": 8, "pad_token_id": 0}
    if version == 2:
        sizes |= {"num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 2, "chunk_size": 8}
    config = (Mamba2Config if version == 2 else MambaConfig)(**sizes, **more)
    torch.manual_seed(seed)
    decoder = (Mamba2Model if version == 2 else MambaModel)(config).eval()
    randomize(decoder, seed)
    return MambaVLM(decoder)


class NemotronOmni(Family):
    """Mamba-2, attention, MLP and expert layers in one list; RADIO tower of 2 × 2 merged patches. Unit: patches."""

    name = "nemotron_h_omni"
    sizes = ((4, 4), (4, 6), (8, 4))
    blocks: ClassVar = ["linear_attention", "mlp", "full_attention", "linear_attention", "moe", "full_attention"]

    def config(self, text: dict) -> Any:
        decoder = {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "layers_block_type": self.blocks,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 96,
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
            "num_logits_to_keep": 0,
            "eos_token_id": None,
        }
        tower = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4, "image_size": 16}
        tower |= {"max_img_size": 32, "video_temporal_patch_size": 2}
        return transformers.NemotronH_Omni_Reasoning_V3_Config(
            text_config={"model_type": "nemotron_h", **decoder, **text},
            vision_config={"model_type": "radio", **tower},
            vision_hidden_size=32,
            projector_hidden_size=48,
            image_token_id=IMAGE,
        )

    def image_tokens(self, size: tuple[int, ...], images_in_row: int) -> list[int]:
        return [START, *[IMAGE] * (size[0] * size[1] // 4), END]

    def pixels(self, config: Any, rows: list) -> dict[str, Tensor]:
        width = 3 * config.vision_config.patch_size**2
        patches = [torch.randn(height * wide, width, generator=gen) for (height, wide), gen in images(rows)]
        grids = [size for size, _ in images(rows)]
        return {"pixel_values": torch.cat(patches), "image_grid_hw": torch.tensor(grids)}
