"""What is proven: the tests run over this list, and docs/families.md is made from it."""

from __future__ import annotations

from families import hunyuan, images, ltx, modular_wan, skyreels, unets, video, wan
from families.base import Family

FAMILIES: tuple[Family, ...] = (
    *wan.FAMILIES,
    *ltx.FAMILIES,
    *skyreels.FAMILIES,
    *hunyuan.FAMILIES,
    *video.FAMILIES,
    *images.FAMILIES,
    *unets.FAMILIES,
    *modular_wan.FAMILIES,
)

# What a reader may look for in the list and not find, and why.
UNPROVEN: dict[str, str] = {
    "Released weights": "every pair here is tiny and random; classes, configs and pipelines are "
    "the real ones",
    "Cosmos-Predict2 with its guardrail and its padding mask": "they need `cosmos_guardrail` and "
    "`torchvision`; neither touches the denoiser's place or the scheduler",
    "Video to video from `latents=` instead of a video": "nothing tells the step that the call "
    "begins with before its first forward; if that lies in a later stage, the first forward runs "
    "in the first stage",
    "Stable Cascade": "its denoisers are called `prior` and `decoder`; the switch looks for "
    "`transformer` and `unet`, and says so",
    "Other pipelines with a `transformer` or a `unet`": "the same rule should hold; nothing here "
    "shows it",
}
