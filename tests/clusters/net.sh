#!/usr/bin/env bash
# net.sh up|down PREFIX SUBNET: two pretend hosts PREFIX1 and PREFIX2 (SUBNET.1 and .2; this machine itself is .254) as network
# namespaces on a bridge. Prefixes and subnets of their own let several pairs live side by side: net.sh up k 10.98.7
set -e
verb=$1 prefix=$2 subnet=$3 bridge=br-$2
if [ "$verb" = down ]; then
  for i in 1 2; do ip netns del "$prefix$i" 2> /dev/null || true; rm -rf "/etc/netns/$prefix$i"; done
  ip link del "$bridge" 2> /dev/null || true
  exit 0
fi
ip link add "$bridge" type bridge; ip addr add "$subnet.254/24" dev "$bridge"; ip link set "$bridge" up
for i in 1 2; do
  host=$prefix$i
  ip netns add "$host"; ip link add "v-$host" type veth peer name eth0 netns "$host"
  ip link set "v-$host" master "$bridge" up
  ip -n "$host" addr add "$subnet.$i/24" dev eth0; ip -n "$host" link set eth0 up; ip -n "$host" link set lo up
  ip -n "$host" route add default via "$subnet.254"
  mkdir -p "/etc/netns/$host"
  printf '127.0.0.1 localhost\n%s.1 %s1\n%s.2 %s2\n%s.254 %s\n' "$subnet" "$prefix" "$subnet" "$prefix" "$subnet" "$(hostname)" > "/etc/netns/$host/hosts"
  echo 'hosts: files' > "/etc/netns/$host/nsswitch.conf"   # a reverse look-up by DNS costs torchrun 30 s
done
