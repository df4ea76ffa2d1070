#!/bin/busybox sh
# First program of the emulated machine: leaves the initramfs (nothing can be
# pivoted there) for a tmpfs, mounts what a Linux system has, runs the tests; or
# leaves all that to systemd.
if [ "$1" != stage2 ]; then
  /bin/busybox --install -s /bin
  mount -t tmpfs -o size=1200m root /newroot
  for d in bin knarr lib lib64 etc init; do [ -e /$d ] && cp -a /$d /newroot/; done
  cd /newroot && mkdir -p proc sys dev run tmp etc usr var
  [ -e /knarr/systemd ] && exec switch_root /newroot /knarr/systemd --log-target=console
  exec switch_root /newroot /init stage2
fi
export PATH=/bin:/knarr HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mount -t securityfs securityfs /sys/kernel/security
echo 'root:x:0:0:root:/root:/bin/sh' > /etc/passwd
echo 'nobody:x:65534:65534:nobody:/tmp:/bin/sh' >> /etc/passwd
for m in overlay bridge veth nf_tables nft_chain_nat nft_nat nft_masq nft_ct nft_fib_inet nft_reject_inet; do
  modprobe $m || echo "no module $m"
done
ip link set lo up
sh /knarr/test.sh
poweroff -f
