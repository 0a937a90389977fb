#!/bin/bash
# Make the directory $1 the root of this mount namespace, as a container would have it, and wait until standard input ends.
# The further arguments are directories of the host that are seen in it under the same path, read-only.
# As process 1 of a pid namespace: bash waits for what has lost its parent, and all ends with it.
set -eu
root=$1
shift
mount --bind "$root" "$root"
cd "$root"
for directory in "$@"; do
    mount --bind "$directory" ".$directory"
    mount -o remount,bind,ro ".$directory"
done
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs -o mode=755,nosuid tmpfs dev
for name in null zero full random urandom tty fuse net/tun; do
    [ -e "/dev/$name" ] || continue
    mkdir -p "dev/$(dirname "$name")"
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for number in 0 1 2; do ln -s "fd/$number" "dev/$(echo 'stdin stdout stderr' | cut -d ' ' -f $((number + 1)))"; done
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
hostname fresh
mkdir .host
pivot_root . .host
umount -l /.host
cd /
rmdir /.host
echo ready
read -r _ || true
