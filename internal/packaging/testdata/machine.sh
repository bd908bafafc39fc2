# Becomes the first process of a Debian machine of its own: systemd, on a copy-on-write
# view of this machine's files. It is run in new mount, process, network, host name and
# IPC namespaces; what it mounts and writes ends with them.
#
# Arguments: an empty directory, and a control group (version 2) for the machine.
set -euo pipefail
dir=$1 group=$2

echo $$ >"$group/cgroup.procs"
mount --make-rprivate /
mount -t tmpfs machine "$dir"
mkdir "$dir"/{changes,work,root}
root=$dir/root
mount -t overlay machine -o "lowerdir=/,upperdir=$dir/changes,workdir=$dir/work" "$root"

for place in tmp run dev var/lib/docker; do
	mkdir -p "$root/$place"
	mount -t tmpfs machine "$root/$place"
done
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
# The kernel's settings are this machine's too, but for the network's, which each
# namespace has of its own.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,ro,bind "$root/proc/sys"
for device in null zero full random urandom tty; do
	touch "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root"/dev/{pts,shm}
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# A machine as it was installed: nothing enabled, the package and its folder not there.
rm -rf "$root"/etc/systemd/system/*.wants "$root/usr/sbin/policy-rc.d"
for unit in systemd-udevd.service systemd-udevd-{control,kernel}.socket systemd-sysctl.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

cd "$root"
mkdir -p srv/old
pivot_root . srv/old
umount -l srv/old
exec unshare --cgroup sh -c '
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=basic.target --show-status=0'
