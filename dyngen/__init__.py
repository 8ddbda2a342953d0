"""dyngen: generated dynamics that are right in time."""
