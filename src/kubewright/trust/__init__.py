"""First contact with machines: host keys recorded, a public key handed over, and what they are, over SSH."""
