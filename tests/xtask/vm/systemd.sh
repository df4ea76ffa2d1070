# knarr-oci with groups that systemd makes. A service's only program; systemd is process 1.
export PATH=/bin:/knarr HOME=/tmp
. /knarr/checks.sh
stamp "systemd"
OCI=${OCI:-knarr-oci --root /run/oci --systemd-cgroup}
CGROUP=knarr-vm.slice:vm:
SLICE=/sys/fs/cgroup/knarr.slice/knarr-vm.slice
. /knarr/oci.sh
bundle
has "it is process 1" systemd "$(cat /proc/1/comm)"
both $SLICE/vm- .scope
show() { systemctl show --property $2 --value $1; }
config four '["sleep","1000"]' "" ",\"resources\":{$RESOURCES,$DEVICES}$NODES"
sed -i 's/"hostname"/"annotations":{"org.systemd.property.TimeoutStopSec":"7"},"hostname"/' $B/config.json
oci run --detach --bundle $B four < /dev/null > /dev/null 2>&1; is "run in the background" 0 $?
is "systemd knows it" "active knarr-vm.slice" "$(show vm-four.scope ActiveState) $(show vm-four.scope Slice)"
is "systemd knows its limits" "67108864 33554432 50331648 50 500ms 0" "$(for name in MemoryMax MemoryLow MemoryHigh TasksMax CPUQuotaPerSecUSec AllowedCPUs; do show vm-four.scope $name; done | xargs)"
is "its group is delegated" yes "$(show vm-four.scope Delegate)"
is "a property by annotation" 7s "$(show vm-four.scope TimeoutStopUSec)"
systemctl daemon-reload; is "systemd is reloaded" 0 $?
is "limits survive that" "67108864 33554432 50331648 50 50000 100000 0" "$(cat $SLICE/vm-four.scope/memory.max $SLICE/vm-four.scope/memory.low $SLICE/vm-four.scope/memory.high $SLICE/vm-four.scope/pids.max $SLICE/vm-four.scope/cpu.max $SLICE/vm-four.scope/cpuset.cpus | xargs)"
is "devices too" "0 not permitted" "$(oci exec four sh -c 'dd if=/dev/kmsg of=/dev/null bs=8192 count=1 2> /dev/null; echo $?; mknod /n c 1 1 2>&1; head -c 1 /n 2>&1 > /dev/null | grep -o "not permitted"' | xargs)"
oci update --memory 100663296 --memory-swap 134217728 four
is "an update keeps the others" "100663296 50331648" "$(cat $SLICE/vm-four.scope/memory.max $SLICE/vm-four.scope/memory.high | xargs)"
systemctl daemon-reload
is "and survives, too" "100663296 50331648" "$(cat $SLICE/vm-four.scope/memory.max $SLICE/vm-four.scope/memory.high | xargs)"
oci delete --force four; is "delete by force" 0 $?
is "no unit is left" "" "$(systemctl list-units --all --plain --no-legend 'vm-*')"
config four '["true"]' "" ""
sed -i 's/"cgroupsPath":"[^"]*"/"cgroupsPath":""/; s/"true"/"cat","\/proc\/1\/cgroup"/; s/,{"type":"cgroup"}//' $B/config.json
is "without a path" "0::/system.slice/knarr-four.scope" "$(oci run --bundle $B four < /dev/null)"
sed -i 's/"cgroupsPath":"[^"]*"/"cgroupsPath":"\/a\/b"/' $B/config.json
has "a path is refused" 'slice:prefix:name' "$(oci run --bundle $B four 2>&1)"
sed -i 's/"cgroupsPath":"[^"]*"/"cgroupsPath":"a--b.slice:p:n"/' $B/config.json
has "what is no slice too" 'invalid slice name' "$(oci run --bundle $B four 2>&1)"
# The same over a bus, as nodes have one.
systemctl start dbus.service; is "a bus is started" 0 $?
config four '["sh","-c","exit 5"]' "" ""
tries=0; until oci run --bundle $B four < /dev/null 2> /tmp/four.log; [ $? = 5 ]; do tries=$((tries + 1)); [ $tries -gt 50 ] && break; usleep 100000; done
[ $tries -gt 50 ] && cat /tmp/four.log
mv /run/systemd/private /run/systemd/elsewhere
oci run --bundle $B four < /dev/null; is "over the bus alone" 5 $?
config five '["sleep","1000"]' "" ",\"resources\":{$RESOURCES}"
lives five $SLICE/vm-five.scope
ends five $SLICE/vm-five.scope
stamp "containerd"
echo 'SystemdCgroup = true' > /etc/knarr.toml
plugin() { echo "\"io.containerd.$1\""; }
echo "version = 2
disabled_plugins = [$(plugin grpc.v1.cri), $(plugin snapshotter.v1.overlayfs), $(plugin snapshotter.v1.btrfs), $(plugin snapshotter.v1.zfs), $(plugin snapshotter.v1.aufs), $(plugin snapshotter.v1.devmapper)]" > /etc/containerd.toml
containerd --config /etc/containerd.toml > /tmp/containerd.log 2>&1 &
tries=0; until ctr version > /dev/null 2>&1; do tries=$((tries + 1)); [ $tries -gt 300 ] && break; usleep 100000; done
ctr image import --snapshotter native /knarr/busybox.tar > /tmp/import.log 2>&1; is "an image is imported" 0 $? || cat /tmp/import.log
IMAGE=$(ctr image ls -q | head -1)
how="--snapshotter native --runtime io.containerd.knarr.v1 --runtime-config-path /etc/knarr.toml"
is "ctr run" "0::$(echo ${SLICE#/sys/fs/cgroup})/ctr-six.scope" "$(ctr run --rm $how --cgroup knarr-vm.slice:ctr:six $IMAGE six cat /proc/self/cgroup)"
ctr run -d $how --cgroup knarr-vm.slice:ctr:six --memory-limit 67108864 $IMAGE six sleep 1000; is "ctr run -d" 0 $?
is "systemd knows it" "active knarr-vm.slice 67108864" "$(show ctr-six.scope ActiveState) $(show ctr-six.scope Slice) $(show ctr-six.scope MemoryMax)"
ctr task exec --exec-id e six sh -c 'exit 3'; is "exec" 3 $?
has "metrics" "67108864" "$(ctr task metrics six | grep memory.usage_limit)"
ctr task pause six; has "pause" PAUSED "$(ctr task ls)"
ctr task resume six; has "resume" RUNNING "$(ctr task ls)"
ctr task kill -s 9 six
tries=0; until ctr task ls | grep -q STOPPED; do tries=$((tries + 1)); [ $tries -gt 100 ] && break; usleep 100000; done
ctr task rm six > /dev/null 2>&1; ctr container rm six; is "remove" 0 $?
ctr run -d $how --cgroup knarr-vm.slice:ctr:six $IMAGE six sleep 1000; is "again" 0 $?
kill -9 $(pidof containerd-shim-knarr-v1)
tries=0; until [ -z "$(ctr task ls -q)" ]; do tries=$((tries + 1)); [ $tries -gt 100 ] && break; usleep 100000; done
is "a shim's death is its container's" "" "$(find /sys/fs/cgroup -name 'ctr-*')"
is "and no unit is left" "" "$(systemctl list-units --all --plain --no-legend 'ctr-*')"
mv /run/dbus /run/elsewhere
has "without either" "/run/dbus/system_bus_socket: no such file or directory; /run/systemd/private: no such" "$(oci run --bundle $B four 2>&1)"
mv /run/systemd/elsewhere /run/systemd/private
is "nothing is left" "" "$(oci list -q; systemctl list-units --all --plain --no-legend 'vm-*' 'knarr-*.scope')"
stamp "a user's manager"
U=/run/user/1000
# A user's manager asks the system's to move what was not born beneath it.
mv /run/elsewhere /run/dbus
mkdir -p $U $U/state; chown -R 1000:1000 $U; chmod 700 $U
systemctl start knarr-user.service; is "his manager is started" 0 $?
cp -r $B/rootfs $U/; chown -R 1000:1000 $U/rootfs
as() { su -s /bin/sh sailor -c "cd $U && export XDG_RUNTIME_DIR=$U && exec $*"; }
own() { as knarr-oci --root $U/state --systemd-cgroup "$@"; }
own spec --rootless; is "spec" 0 $?
plain
G=/sys/fs/cgroup/user.slice/user-1000.slice/knarr-user.service/user.slice
limits='"cgroupsPath": "user.slice:libpod:two", "resources": { "pids": { "limit": 10 }, "memory": { "limit": 67108864 } },'
for how in "his manager's own socket" "his bus"; do
  args '["sh","-c","cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max; exit 7"]' "$limits"
  own run one < /dev/null > $U/out 2>&1; is "over $how: run" "7 10 67108864" "$? $(xargs < $U/out)"
  args '["sleep","1000"]' "$limits"
  own run --detach two < /dev/null > $U/out 2>&1; is "in the background" 0 $?; cat $U/out
  is "its group is his manager's" 1 "$(wc -l < $G/libpod-two.scope/cgroup.procs)"
  is "that knows its limits" "67108864 10" "$(as systemctl --user show --property MemoryMax --value libpod-two.scope) $(as systemctl --user show --property TasksMax --value libpod-two.scope)"
  own exec two sh -c "'exit 3'"; is "exec" 3 $?
  own pause two; is "pause" 1 "$(cat $G/libpod-two.scope/cgroup.freeze)"
  own resume two; own update --memory 33554432 two; is "update" 33554432 "$(cat $G/libpod-two.scope/memory.max)"
  own delete --force two; is "delete" 0 $?
  is "no group is left" no "$([ -e $G/libpod-two.scope ] && echo yes || echo no)"
  is "no unit is left" "" "$(as systemctl --user list-units --all --plain --no-legend "'libpod-*'")"
  as systemctl --user start dbus.service; is "his bus is started" 0 $?
done
has "without either" "$U/none/bus: no such file or directory; $U/none/systemd/private: no such" "$(as env XDG_RUNTIME_DIR=$U/none knarr-oci --root $U/state --systemd-cgroup run two 2>&1)"
systemctl stop knarr-user.service; is "his manager is stopped" 0 $?
stamp "end"
[ $failed = 0 ] && echo "knarr-vm: all passed" || echo "knarr-vm: failures"
poweroff -f
