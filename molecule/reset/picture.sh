# Everything of a machine that a cluster could leave behind, in a form that is the same when nothing has changed.
# Not looked at: what belongs to the kernel (/proc, /sys), logs, what Python and systemd cache for themselves, and what
# whoever runs Ansible and kubectl leaves in root's home. /var/lib/docker is a disk of its own in the lab, whose mode
# dockerd sets.
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp -o -path /var/log/journal \
  -o -path /root/.ansible -o -path /root/.kube -o -path /var/lib/systemd -o -path /var/lib/chrony -o -path /var/lib/docker \
  -o -name __pycache__ \) -prune -o -printf 'file %p %y %m %u:%g %l\n' | sort
find /var/lib/docker -mindepth 1 -maxdepth 1 -printf 'file %p\n'
find /var/lib/systemd/timers -name 'stamp-etcd*' -printf 'file %p\n' 2>/dev/null
find /run -maxdepth 2 \( -path /run/systemd -o -path /run/user -o -path /run/log -o -path /run/udev \) -prune -o -printf 'file %p\n' | sort
find /etc -type f -exec sha256sum {} + | sort | sed 's/^/content /'
systemctl list-unit-files --no-legend --no-pager | awk '{print "unit file", $1, $2}'
systemctl list-units --all --no-legend --no-pager --plain --type=service,socket,timer,mount \
  | awk '$1 !~ /hostnamed|session-|user|modprobe|tmpfiles-clean|run-host|proc-sys/ {print "unit", $1, $2, $3}'
ip -br link | awk '{print "device", $1, $2}'
ip route show table all | sed 's/^/route /'
ip rule | sed 's/^/route rule /'
for program in iptables-legacy iptables-nft ip6tables-legacy ip6tables-nft; do
  $program-save | grep -E '^(-A|\*|:[^ ]+ (-|DROP))' | sed "s/ \[.*//; s/^/rule $program /" | grep -v ' \*'
done
ipset list -n | sed 's/^/ipset /'
findmnt -rno TARGET,FSTYPE | grep -vE '^/(proc|run/(user|host))' | sort | sed 's/^/mount /'
sysctl -a 2>/dev/null | grep -E '^(kernel\.(panic|keys)|vm\.(overcommit|panic|swappiness|max_map)|net\.ipv4\.(ip_forward|vs\.))' | sed 's/^/sysctl /'
sysctl -a 2>/dev/null | grep -E '^net\.(ipv4\.conf\.(all|default)\.(forwarding|route_localnet)|bridge|netfilter\.nf_conntrack_(max|tcp_timeout_(est|close_w)))' \
  | sed 's/^/sysctl /'
ps -eo comm= | grep -vE '^(sh|ps|sort|grep|sed|awk|find|python3|bash|sftp-server|sshd|sudo|systemd-hostnam|\(sd-pam\)|\(udev-worker\))$' | sort -u | sed 's/^/process /'
hostname | sed 's/^/name /'
