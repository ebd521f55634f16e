"""Masquerading and forwarding rules: what they are, and the engines that keep them, iptables and nftables."""
