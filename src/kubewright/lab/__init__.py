"""The lab: the machines of an inventory as containers with an init, a network and an SSH server of their own."""
