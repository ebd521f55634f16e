"""What runs on the machines: shipped by Ansible as module utilities, so Python 3.9 and the standard library only."""
