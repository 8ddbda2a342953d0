"""Lightning data modules, and everything that touches files."""
