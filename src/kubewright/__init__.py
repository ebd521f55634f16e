"""kubewright: Kubernetes from plain binaries and systemd units, by Ansible."""
