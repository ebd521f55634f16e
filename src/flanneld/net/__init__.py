"""The kernel's network: the only package that speaks netlink."""
