"""The network daemon: subnet leases in etcd, an overlay on every machine."""
