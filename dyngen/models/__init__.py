"""LightningModules: thin shells around networks and diffusion."""

from dyngen.models.discriminator import TimeConsistencyDiscriminator
from dyngen.models.image_ddpm import ImageDDPM

__all__ = ["ImageDDPM", "TimeConsistencyDiscriminator"]
