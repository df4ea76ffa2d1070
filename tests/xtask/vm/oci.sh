# knarr-oci on cgroup v2: sourced by test.sh and systemd.sh, which set OCI (the command with its
# global flags) and CGROUP (cgroupsPath up to the container's name).
B=/tmp/bundle
bundle() { # the root filesystem of all bundles
  mkdir -p $B/rootfs/bin $B/rootfs/tmp $B/rootfs/proc $B/rootfs/sys $B/rootfs/dev
  cp /bin/busybox $B/rootfs/bin/ && /bin/busybox --install -s $B/rootfs/bin
  for program in hello web; do cp /knarr/$program.wasm $B/rootfs/$program.wasm; done
  echo hidden > $B/rootfs/tmp/secret
}
# config NAME ARGS PROCESS LINUX: a config.json; the last two begin with a comma where they say something.
config() {
  caps='["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_KILL","CAP_MKNOD","CAP_SYSLOG","CAP_NET_BIND_SERVICE"]'
  cat > $B/config.json <<JSON
{"ociVersion":"1.0.2","hostname":"vm","root":{"path":"rootfs"},
 "process":{"user":{"uid":0,"gid":0},"cwd":"/","env":["PATH=/bin"],"args":$2,
  "capabilities":{"bounding":$caps,"effective":$caps,"permitted":$caps}$3},
 "mounts":[{"destination":"/proc","type":"proc","source":"proc"},
  {"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755","size=65536k"]},
  {"destination":"/sys","type":"sysfs","source":"sysfs","options":["ro"]},
  {"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["ro"]}],
 "linux":{"cgroupsPath":"$CGROUP$1","namespaces":[{"type":"pid"},{"type":"network"},{"type":"ipc"},
  {"type":"uts"},{"type":"mount"},{"type":"cgroup"}]$4}}
JSON
}
oci() { $OCI "$@"; }
# lives NAME GROUP: what everybody does with a container, in the group of that directory.
lives() {
  oci create --bundle $B $1 < /dev/null > /tmp/$1.log 2>&1; is "$1: create" 0 $?; cat /tmp/$1.log
  has "$1: created" '"created"' "$(oci state $1 | grep status)"
  oci start $1; is "$1: start" 0 $?
  has "$1: running" '"running"' "$(oci state $1 | grep status)"
  pid=$(oci state $1 | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')
  is "$1: its process is in its group" "$pid" "$(head -1 $2/cgroup.procs)"
  is "$1: memory limit" 67108864 "$(cat $2/memory.max)"
  [ -e $2/memory.swap.max ] && is "$1: swap limit" 33554432 "$(cat $2/memory.swap.max)"
  is "$1: memory reservation" 33554432 "$(cat $2/memory.low)"
  is "$1: unified" "50331648" "$(cat $2/memory.high)"
  is "$1: pids limit" 50 "$(cat $2/pids.max)"
  is "$1: cpu limit" "50000 100000" "$(cat $2/cpu.max)"
  is "$1: cpu shares" 79 "$(cat $2/cpu.weight)"
  is "$1: cpu set" 0 "$(cat $2/cpuset.cpus)"
  has "$1: ps" "$pid" "$(oci ps $1)"
  has "$1: ps as json" "$pid" "$(oci ps --format json $1)"
  has "$1: list" running "$(oci list)"
  stats=$(oci events --stats $1)
  has "$1: stats know the limit of memory" 67108864 "$stats"
  has "$1: and that of processes" '"limit":50' "$stats"
  oci pause $1; is "$1: pause" "0 1" "$? $(sed -n 's/frozen //p' $2/cgroup.events)"
  has "$1: paused" '"paused"' "$(oci state $1 | grep status)"
  oci resume $1; is "$1: resume" "0 0" "$? $(sed -n 's/frozen //p' $2/cgroup.events)"
  oci update --memory 100663296 --memory-swap 134217728 --cpu-quota 20000 --cpu-period 50000 --cpu-share 1024 --pids-limit 60 --cpuset-cpus 0-1 $1; is "$1: update" 0 $?
  is "$1: updated" "100663296 20000 50000 39 60 0-1" "$(cat $2/memory.max $2/cpu.max $2/cpu.weight $2/pids.max $2/cpuset.cpus | xargs)"
  [ -e $2/memory.swap.max ] && is "$1: updated swap limit" 33554432 "$(cat $2/memory.swap.max)"
}
# ends NAME GROUP
ends() {
  oci kill $1 KILL; is "$1: kill" 0 $?
  tries=0; until oci state $1 | grep -q '"stopped"'; do tries=$((tries + 1)); [ $tries -gt 100 ] && break; usleep 50000; done
  has "$1: stopped" '"stopped"' "$(oci state $1 | grep status)"
  oci delete $1; is "$1: delete" 0 $?
  is "$1: no group is left" "no" "$([ -e $2 ] && echo yes || echo no)"
  is "$1: no container is left" "" "$(oci list -q)"
}
RESOURCES='"memory":{"limit":67108864,"swap":100663296,"reservation":33554432},"cpu":{"shares":2048,"quota":50000,"period":100000,"cpus":"0"},"pids":{"limit":50},"unified":{"memory.high":"50331648"}'
DEVICES='"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]'
NODES=',"devices":[{"path":"/dev/kmsg","type":"c","major":1,"minor":11,"fileMode":438}]'
# both GROUP-PREFIX GROUP-SUFFIX: a native and a Wasm container from their first to their last day.
both() {
  config one '["sleep","1000"]' "" ",\"resources\":{$RESOURCES,$DEVICES}$NODES"
  lives one "$1one$2"
  is "exec is in the group" "$(wc -l < "$1one$2/cgroup.procs")" 1
  is "exec sees the group" 60 "$(oci exec one cat /sys/fs/cgroup/pids.max)"
  oci exec one sh -c 'exit 9'; is "exec's exit code" 9 $?
  oci exec --detach one sleep 999 < /dev/null > /dev/null 2>&1; is "exec in the background" 0 $?
  is "is in the group too" 2 "$(wc -l < "$1one$2/cgroup.procs")"
  is "a device that was given works" 0 "$(oci exec one sh -c 'dd if=/dev/kmsg of=/dev/null bs=8192 count=1 2> /dev/null; echo $?')"
  is "only as it was given" 1 "$(oci exec one sh -c '{ echo x > /dev/kmsg; } 2> /dev/null; echo $?')"
  is "others do not" "not permitted" "$(oci exec one sh -c 'mknod /m c 1 1 2>&1; head -c 1 /m 2>&1 > /dev/null | grep -o "not permitted"')"
  ends one "$1one$2"
  config two '["/web.wasm"]' "" ",\"resources\":{$RESOURCES}"
  lives two "$1two$2"
  ends two "$1two$2"
  config three '["/hello.wasm"]' "" ""
  has "a wasm program runs" hello "$(oci run --bundle $B three < /dev/null 2>&1)"
  config three '["sh","-c","exit 5"]' "" ""
  oci run --bundle $B three < /dev/null; is "and a native one" 5 $?
  is "no group is left of either" no "$([ -e "$1three$2" ] && echo yes || echo no)"
}
# plain: makes of the specification in a user's bundle, $U, what args completes.
plain() {
  sed -i 's/"terminal": true/"terminal": false/; s/"readonly": true/"readonly": false/' $U/config.json
  sed '/"args": \[/,/\]/c\"args": ARGS,' $U/config.json > $U/plain.json
}
# args ARGS [LINUX]: a config.json with these; what is said of linux ends with a comma.
args() { sed "s|ARGS|$1|; s|\"linux\": {|\"linux\": { $2|" $U/plain.json > $U/config.json; }
