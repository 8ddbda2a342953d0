"""LightningModules: thin shells around networks and diffusion."""

from dyngen.models.discriminator import TimeConsistencyDiscriminator
from dyngen.models.image_ddpm import ImageDDPM
from dyngen.models.video_diffusion import VideoDiffusion

__all__ = ["ImageDDPM", "TimeConsistencyDiscriminator", "VideoDiffusion"]
