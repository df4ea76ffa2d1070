# The basics of both kinds on cgroup v2. Prints "ok" and "not ok" lines and a last verdict.
export DOCKER_HOST=unix:///run/knarr.sock
ROOT=/sys/fs/cgroup/knarr
. /knarr/checks.sh
# eventually NAME COMMAND…: what is served soon is asked for until it answers.
eventually() {
  what=$1; shift; tries=0
  until "$@" > /dev/null 2>&1; do
    tries=$((tries + 1))
    if [ $tries -gt 100 ]; then echo "not ok $what: $("$@" 2>&1 | head -3)"; failed=1; return; fi
    usleep 100000
  done
  echo "ok $what"
}
daemon() {
  rm -f /tmp/ready; mkfifo /tmp/ready
  knarrd --data-root /var/lib/knarr --exec-root /run/knarr --host $DOCKER_HOST --ready-fd 3 3>/tmp/ready 2>>/tmp/knarrd.log &
  daemon=$!
  head -c 1 /tmp/ready > /dev/null
}
id() { knarr inspect $1 --format '{{.Id}}'; }
state() { knarr inspect $1 --format '{{.State.Status}}'; }
# fetch URL: from inside the container "native".
fetch() { knarr exec native timeout 5 wget -q -O - http://$1; }
outside() { timeout 5 wget -q -O - http://$1; }

stamp "images"
daemon
for image in busybox layers hello hello-component web; do knarr load -i /knarr/$image.tar > /dev/null; is "load $image" 0 $?; done
has "info names the cgroup version" "Cgroup Version: 2" "$(knarr info 2>&1)"

stamp "run"
is "native runs" hello "$(knarr run --rm busybox echo hello)"
has "wasm runs" hello "$(knarr run --rm hello)"
has "a component runs" hello "$(knarr run --rm hello-component)"
is "an image of many layers runs" 126 "$(knarr run --rm layers cat /last)"
is "and fills a volume" 126 "$(knarr run --rm -v filled:/deep layers cat /deep/last)"
is "groups by name" "0 2000" "$(knarr run --rm --group-add extra busybox id -G)"
knarr run --rm busybox sh -c 'exit 7'; is "native exit code" 7 $?
knarr run --rm hello exit 7; is "wasm exit code" 7 $?
knarr run --rm busybox /none 2> /dev/null; is "what cannot be found" 127 $?
is "the container sees its own group as the root" "0::/" "$(knarr run --rm busybox cat /proc/self/cgroup)"
is "the root filesystem can be read only" 1 "$(knarr run --rm --read-only busybox sh -c 'touch /x 2> /dev/null; echo $?')"

stamp "limits"
limits="-m 64m --memory-swap 96m --memory-reservation 32m --pids-limit 50 --cpus 0.5 -c 2048 --cpuset-cpus 0"
knarr run -d --name native $limits busybox sleep 1000 > /dev/null
knarr run -d --name web $limits web > /dev/null
for name in native web; do
  group=$ROOT/$(id $name)
  is "$name: memory limit" 67108864 "$(cat $group/memory.max)"
  [ -e $group/memory.swap.max ] && is "$name: swap limit" 33554432 "$(cat $group/memory.swap.max)"
  is "$name: memory reservation" 33554432 "$(cat $group/memory.low)"
  is "$name: pids limit" 50 "$(cat $group/pids.max)"
  is "$name: cpu limit" "50000 100000" "$(cat $group/cpu.max)"
  is "$name: cpu shares" 79 "$(cat $group/cpu.weight)"
  is "$name: cpu set" 0 "$(cat $group/cpuset.cpus)"
  is "$name: its process is in its group" "$(knarr inspect $name --format '{{.State.Pid}}')" "$(head -1 $group/cgroup.procs)"
  knarr pause $name > /dev/null
  is "$name: paused" "paused 1 1" "$(state $name) $(cat $group/cgroup.freeze) $(sed -n 's/frozen //p' $group/cgroup.events)"
  knarr unpause $name > /dev/null
  is "$name: goes on" "running 0 0" "$(state $name) $(cat $group/cgroup.freeze) $(sed -n 's/frozen //p' $group/cgroup.events)"
  has "$name: stats" " / 64MiB" "$(knarr stats --no-stream $name)"
  is "$name: stats count memory" 1 "$(knarr stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' $name | grep -c '^[1-9].*iB / 64MiB [1-9]')"
done
is "exec is in the group" 50 "$(knarr exec native cat /sys/fs/cgroup/pids.max)"
knarr exec native sh -c 'exit 9'; is "exec's exit code" 9 $?
has "no exec in wasm" "Wasm" "$(knarr exec web sh 2>&1)"
knarr pause native > /dev/null; knarr kill native > /dev/null
is "kill of a paused container" 137 "$(knarr wait native)"
knarr stop -t 5 web > /dev/null; is "stop" exited "$(state web)"
knarr rm native web > /dev/null
knarr run --name hog -m 16m busybox sh -c 'x=a; while :; do x=$x$x; done' 2> /dev/null; is "memory hog is killed" 137 $?
is "and it is said" true "$(knarr inspect hog --format '{{.State.OOMKilled}}')"
knarr rm hog > /dev/null
has "a fork bomb finds its limit" "fork" "$(knarr run --rm --pids-limit 5 busybox sh -c 'for i in 1 2 3 4 5 6 7 8; do sleep 9 & done' 2>&1)"

stamp "devices"
look='mknod /m c 1 1 2>&1; head -c 1 /m 2>&1 > /dev/null | grep -o "not permitted"; echo $?'
is "what is not named is denied" "not permitted" "$(knarr run --rm busybox sh -c "$look" | head -1)"
is "the usual ones work" 0 "$(knarr run --rm busybox sh -c 'head -c 8 /dev/urandom > /dev/null && echo x > /dev/null; echo $?')"
is "one that is given works" 0 "$(knarr run --rm --cap-add SYSLOG --device /dev/kmsg:/dev/log:r busybox sh -c 'dd if=/dev/log of=/dev/null bs=8192 count=1 2> /dev/null; echo $?')"
is "but only as given" 1 "$(knarr run --rm --cap-add SYSLOG --device /dev/kmsg:/dev/log:r busybox sh -c '{ echo x > /dev/log; } 2> /dev/null; echo $?')"
is "privileged: every device" 0 "$(knarr run --rm --privileged busybox sh -c 'dd if=/dev/kmsg of=/dev/null bs=8192 count=1 2> /dev/null; echo $?')"
is "privileged: cgroups can be written" 0 "$(knarr run --rm --privileged busybox sh -c 'mkdir /sys/fs/cgroup/inner; echo $?')"
is "else they cannot" 1 "$(knarr run --rm busybox sh -c 'mkdir /sys/fs/cgroup/inner 2> /dev/null; echo $?')"

stamp "networks"
knarr network create harbour > /dev/null
knarr network create elsewhere > /dev/null
knarr run -d --name native --network harbour -v hold:/data -p 8000:8000 busybox sh -c 'mkdir /www; echo i-am-native > /www/index.html; httpd -f -p 8000 -h /www' > /dev/null
knarr run -d --name web --network harbour -v hold:/data -e BACKEND=native:8000 -p 8080:8080 web > /dev/null
knarr run -d --name stranger --network elsewhere busybox sleep 1000 > /dev/null
eventually "native reaches wasm by name" fetch web:8080/
eventually "wasm reaches native by name" fetch web:8080/native
has "and gets its answer" i-am-native "$(fetch web:8080/native)"
eventually "a published native port" outside 127.0.0.1:8000/
eventually "a published wasm port" outside 127.0.0.1:8080/
has "both write one volume" visit "$(outside 127.0.0.1:8080/)"
is "and read it" 0 "$(knarr exec native sh -c 'test -s /data/visits; echo $?')"
is "other networks are apart" 1 "$(knarr exec stranger sh -c 'timeout 1 wget -q -O - http://web:8080/ > /dev/null 2>&1; echo $?')"

stamp "recovery"
kill -9 $daemon; wait $daemon 2> /dev/null
daemon
is "both are found again" "running running" "$(state native) $(state web)"
eventually "names are served again" fetch web:8080/native
eventually "ports are published again" outside 127.0.0.1:8080/
knarr exec native sh -c 'exit 3'; is "exec again" 3 $?
has "stats again" web "$(knarr stats --no-stream web)"
knarr stop -t 1 native web stranger > /dev/null
is "stop again" "exited exited" "$(state native) $(state web)"
for name in native web stranger; do
  id=$(id $name)
  knarr rm -f $name > /dev/null
  is "no cgroup of $name is left" "" "$(find /sys/fs/cgroup -name "$id*")"
done
is "no interface is left" "" "$(ls /sys/class/net | grep '^kv')"

stamp "profiles"
cat /knarr/profile.bin > /sys/kernel/security/apparmor/.load; is "a profile is loaded" 0 $?
has "info names AppArmor" apparmor "$(knarr info 2>&1)"
confined="--security-opt apparmor=knarr-vm"
is "a native container is confined" "knarr-vm (enforce)" "$(knarr run --rm $confined busybox cat /proc/self/attr/current)"
is "with no new privileges too" "knarr-vm (enforce)" "$(knarr run --rm $confined --security-opt no-new-privileges --init busybox cat /proc/self/attr/current)"
is "others are not" unconfined "$(knarr run --rm busybox cat /proc/self/attr/current)"
is "and it bites" "Permission denied" "$(knarr run --rm $confined busybox sh -c 'echo x 2>&1 > /tmp/secret' 2>&1 | grep -o 'Permission denied')"
knarr run -d --name web $confined web > /dev/null
is "a wasm container is confined" "knarr-vm (enforce)" "$(cat /proc/$(knarr inspect web --format '{{.State.Pid}}')/attr/current)"
knarr run -d --name native $confined busybox sleep 1000 > /dev/null
is "exec is confined" "knarr-vm (enforce)" "$(knarr exec native cat /proc/self/attr/current)"
is "inspect says so" knarr-vm "$(knarr inspect native --format '{{.AppArmorProfile}}')"
has "a profile that is not there" 'no such profile is loaded' "$(knarr run --rm --security-opt apparmor=nobody busybox true 2>&1)"
knarr rm -f web native > /dev/null
kill $daemon; wait $daemon; is "the daemon ends" 0 $?
is "and no cgroup of its own is left" "" "$(find $ROOT 2> /dev/null)"

stamp "knarr-oci"
OCI="knarr-oci --root /run/oci"
CGROUP=/knarr-vm/
. /knarr/oci.sh
bundle
both /sys/fs/cgroup/knarr-vm/ ""
profile=',"apparmorProfile":"knarr-vm"'
config four '["cat","/proc/self/attr/current"]' "$profile" ""
is "confined" "knarr-vm (enforce)" "$(oci run --bundle $B four < /dev/null)"
config four '["cat","/tmp/secret"]' "$profile" ""
has "it bites" "Permission denied" "$(oci run --bundle $B four < /dev/null 2>&1)"
config four '["sleep","1000"]' "" ""
oci run --detach --bundle $B four < /dev/null > /dev/null 2>&1; is "one without a profile" 0 $?
is "exec with one" "knarr-vm (enforce)" "$(oci exec --apparmor knarr-vm four cat /proc/self/attr/current)"
has "exec with one that is not there" 'no such profile is loaded' "$(oci exec --apparmor nobody four true 2>&1)"
oci delete --force four
config four '["/web.wasm"]' "$profile" ""
oci run --detach --bundle $B four < /dev/null > /dev/null 2>&1; is "a wasm program with a profile" 0 $?
is "is confined" "knarr-vm (enforce)" "$(cat /proc/$(oci state four | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')/attr/current)"
oci delete --force four
config four '["true"]' ',"apparmorProfile":"nobody"' ""
has "create with one that is not there" 'no such profile is loaded' "$(oci create --bundle $B four < /dev/null 2>&1)"
has "no systemd" "systemd support for managing cgroups is not available" "$(knarr-oci --systemd-cgroup run --bundle $B four 2>&1)"
rmdir /sys/fs/cgroup/knarr-vm; is "nothing is left in the parent" 0 $?

stamp "knarr-oci of a user without privileges"
U=/run/user
mkdir -p $U/state; cp -r $B/rootfs $U/
# as COMMAND…: in a group that the user has been given, where there is one.
as() { su -s /bin/sh nobody -c "cd $U && exec knarr-oci --root $U/state $*"; }
chown -R nobody $U; as spec --rootless; is "spec" 0 $?
plain
args '["sh","-c","id -u; cat /proc/self/cgroup; grep -c . /sys/fs/cgroup/cgroup.controllers"]'
is "runs without a group" "0 0::/ 1" "$(as run one < /dev/null 2>&1 | tr '\n' ' ' | sed 's/ $//')"
# A group of the user's, in which he is, with controllers for what he makes in it.
G=/sys/fs/cgroup/knarr-user
mkdir -p $G/own; echo "+pids +memory" > $G/cgroup.subtree_control
chown nobody $G $G/cgroup.procs $G/cgroup.subtree_control $G/own $G/own/cgroup.procs
echo $$ > $G/own/cgroup.procs
args '["sh","-c","cat /sys/fs/cgroup/pids.max; sleep 1000"]' '"cgroupsPath": "/knarr-user/two", "resources": { "pids": { "limit": 10 } },'
as run --detach two < /dev/null > $U/out 2>&1; is "runs in a group of his" 0 $?
tries=0; until [ -s $U/out ] || [ $tries -gt 100 ]; do tries=$((tries + 1)); usleep 50000; done
is "with its limits" 10 "$(cat $U/out)"
is "exec is in it, too" 2 "$(as exec two cat /sys/fs/cgroup/cgroup.procs | wc -l)"
as pause two; is "pause" 1 "$(cat $G/two/cgroup.freeze)"
as resume two; as delete --force two; is "delete" 0 $?
is "no group is left" no "$([ -e $G/two ] && echo yes || echo no)"
echo $$ > /sys/fs/cgroup/cgroup.procs; rmdir $G/own $G
stamp "end"
[ $failed = 0 ] && echo "knarr-vm: all passed" || { echo "knarr-vm: failures"; tail -20 /tmp/knarrd.log; }
