"""The network daemon: subnet leases in etcd, an overlay on every machine."""

__version__ = "0.1.0"
