"""LightningModules: thin shells around networks and diffusion."""

from dyngen.models.discriminator import TimeConsistencyDiscriminator
from dyngen.models.image_ddpm import ImageDDPM
from dyngen.models.motion_autoencoder import MotionAutoencoder
from dyngen.models.motion_renderer import MotionRenderer
from dyngen.models.spectral_ldm import SpectralLDM
from dyngen.models.video_diffusion import VideoDiffusion

__all__ = [
    "ImageDDPM",
    "MotionAutoencoder",
    "MotionRenderer",
    "SpectralLDM",
    "TimeConsistencyDiscriminator",
    "VideoDiffusion",
]
