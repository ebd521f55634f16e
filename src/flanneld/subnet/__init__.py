"""Who has which subnet: the network's configuration, leases, and the managers that keep them in etcd or Kubernetes."""
