# Becomes a program of a Debian tree, in a mount namespace of its own: $0 is the tree, and
# $@ are the words of the command. /tmp and /var/tmp are the same inside and outside.
mount --bind "$0" "$0"
for dir in proc sys dev tmp var/tmp; do mount --rbind "/$dir" "$0/$dir"; done
mount -t tmpfs run "$0/run"
mount --make-rprivate "$0" # while they are shared, mounts multiply, and a start takes a minute
cd "$0"
pivot_root . mnt # after a chroot alone, docker exec would run on this machine's files
exec chroot . sh -ec 'umount -l /mnt; exec "$@"' sh "$@"
