"""Lightning data modules, and everything that touches files."""

from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.errors import DataError

__all__ = ["ClimateCubeDataModule", "DataError"]
