"""A CA toolkit in the manner of cfssl."""
