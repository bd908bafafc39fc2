#!/usr/bin/env bash
# Makes the Debian system that an engine or a machine is run from, unless this very recipe
# has made it before. As root: tree.sh debian12|debian14
#
# $TASKMETA_DEV/NAME then holds: disk (bootable), vmlinuz, initrd.img, recipe (this file), and
# root (the tree itself), where Docker is run from it.
set -euo pipefail
name=${1-}
packages="docker.io iptables nftables iproute2 procps ca-certificates
  systemd-sysv udev dbus linux-image-cloud-$(dpkg --print-architecture) apparmor
  ufw firewalld network-manager"
case $name in
debian12) suite=bookworm ;;
debian14) suite=forky packages+=" docker-cli podman uidmap passt" ;;
*) echo "tree.sh: no system $name: want debian12 or debian14" >&2; exit 2 ;;
esac
dev=${TASKMETA_DEV:-/var/lib/taskmeta-dev}
made=$dev/$name new=$dev/$name.new
case $dev/ in /tmp/* | /var/tmp/*) echo "tree.sh: TASKMETA_DEV=$dev: want a folder outside of /tmp and /var/tmp" >&2; exit 2 ;; esac

if [ "${2-}" != --namespaces ]; then # what is mounted or runs below ends with the namespaces
  mkdir -p "$dev"
  exec 9>"$dev/$name.lock"
  flock 9
  cmp -s "$0" "$made/recipe" && exit
  exec timeout --foreground --kill-after 10 40m setpriv --pdeathsig KILL \
    unshare --mount --pid --fork --kill-child --mount-proc "$0" "$name" --namespaces
fi

# The mirror is the one that this machine itself installs from.
mirror() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sed -n 1p; }
mirror=$(mirror)
[ -n "$mirror" ] || { apt-get update -qq && mirror=$(mirror); }
[ -n "$mirror" ] || { echo "tree.sh: apt is not configured with a mirror of Debian" >&2; exit 1; }
echo "tree.sh: making $made from $mirror $suite"
rm -rf "$new"
mkdir "$new"
root=$new/root
debootstrap --variant=minbase "$suite" "$root" "$mirror" /usr/share/debootstrap/scripts/sid >"$new/log" ||
  { tail "$new/log" >&2; exit 1; }

mount --bind /proc "$root/proc"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/quick"
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -qq -y --no-install-recommends $packages >>"$new/log" 2>&1 ||
  { tail "$new/log" >&2; exit 1; }
chroot "$root" apt-get clean
rm "$root/usr/sbin/policy-rc.d" "$root/etc/dpkg/dpkg.cfg.d/quick"
umount "$root/proc"

# The machine's side of testnet.Machine: a shell that runs each line it is sent.
echo "$name" >"$root/etc/hostname"
cat >"$root/usr/local/sbin/testnet-shell" <<'SHELL'
#!/bin/sh
until [ -c /dev/virtio-ports/shell ]; do sleep 0.1; done
exec 3<>/dev/virtio-ports/shell <&3 >&3 2>&3
echo ready
while read -r line; do
  sh -c "$line" </dev/null 3>&-
  printf '\nexit %d\n' $?
done
SHELL
cat >"$root/etc/systemd/system/testnet-shell.service" <<'UNIT'
[Service]
ExecStart=/bin/sh /usr/local/sbin/testnet-shell
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s /etc/systemd/system/testnet-shell.service "$root/etc/systemd/system/multi-user.target.wants/"
# What would rule the network is there, for tests to start. A unit may be of one system only.
for unit in ufw firewalld NetworkManager NetworkManager-wait-online NetworkManager-dispatcher nftables \
  systemd-networkd.{service,socket} systemd-networkd-wait-online podman-auto-update.timer podman-restart; do
  chroot "$root" systemctl --quiet disable "$unit" 2>>"$new/log" || true
done
for unit in apt-daily.timer apt-daily-upgrade.timer; do # they want a network
  ln -s /dev/null "$root/etc/systemd/system/$unit"
done

cp -L "$root/vmlinuz" "$root/initrd.img" "$new/"
mkfs.ext4 -q -d "$root" "$new/disk" 4G
[ "$name" = debian14 ] || rm -rf "$root"
cp "$0" "$new/recipe"
rm -rf "$made"
mv "$new" "$made"
