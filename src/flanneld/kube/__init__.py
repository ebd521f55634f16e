"""Kubernetes' API: how it is reached, a client for nodes, and what flannel keeps in their annotations."""
