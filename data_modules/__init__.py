"""Lightning data modules, and everything that touches files."""

from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.errors import DataError
from data_modules.trajectories import TrajectoryDataModule

__all__ = ["ClimateCubeDataModule", "DataError", "TrajectoryDataModule"]
