"""Clients of etcd's two APIs, with nothing but the standard library."""
