"""The data path of the udp backend: IPv4 packets between a TUN and a UDP socket, in a process of its own."""
