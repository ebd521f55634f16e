"""How packets get from machine to machine: one module per backend over the interface in `base`."""
