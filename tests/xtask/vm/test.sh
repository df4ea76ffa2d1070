# The basics of both kinds on cgroup v2. Prints TAP-like lines and a last verdict.
export DOCKER_HOST=unix:///run/knarr.sock
failed=0
is() { # is NAME WANT GOT
  if [ "$2" = "$3" ]; then echo "ok $1"; else echo "not ok $1: want '$2', got '$3'"; failed=1; fi
}
has() { # has NAME NEEDLE TEXT
  case "$3" in *"$2"*) echo "ok $1" ;; *) echo "not ok $1: no '$2' in '$3'"; failed=1 ;; esac
}

# fetch URL: from inside the container "native".
fetch() { knarr exec native wget -q -O - http://$1; }

mkfifo /tmp/ready
knarrd --data-root /var/lib/knarr --exec-root /run/knarr --host $DOCKER_HOST --ready-fd 3 3>/tmp/ready 2>/tmp/knarrd.log &
head -c 1 /tmp/ready > /dev/null
for image in busybox hello web; do knarr load -i /knarr/$image.tar > /dev/null || echo "not ok load $image"; done

has "info names the cgroup version" "Cgroup Version: 2" "$(knarr info 2>&1)"
is "native runs" hello "$(knarr run --rm busybox echo hello)"
has "wasm runs" hello "$(knarr run --rm hello)"
knarr run --rm busybox sh -c 'exit 7'; is "native exit code" 7 $?
knarr run --rm hello exit 7; is "wasm exit code" 7 $?
is "memory limit" 67108864 "$(knarr run --rm -m 64m busybox cat /sys/fs/cgroup/memory.max)"
is "pids limit" 50 "$(knarr run --rm --pids-limit 50 busybox cat /sys/fs/cgroup/pids.max)"
is "cpu limit" "50000 100000" "$(knarr run --rm --cpus 0.5 busybox cat /sys/fs/cgroup/cpu.max)"
knarr run --name hog -m 16m busybox sh -c 'x=a; while :; do x=$x$x; done' 2> /dev/null; is "memory hog is killed" 137 $?
is "and it is said" true "$(knarr inspect hog --format '{{.State.OOMKilled}}')"
is "devices are denied" 1 "$(knarr run --rm --cap-add MKNOD busybox sh -c 'mknod /m c 1 1; cat /m 2>&1 | grep -c "not permitted"')"
is "the allowed ones work" 0 "$(knarr run --rm busybox sh -c 'head -c 8 /dev/urandom > /dev/null; echo $?')"

knarr network create harbour > /dev/null
knarr run -d --name native --network harbour -v hold:/data busybox sh -c 'mkdir /www; echo i-am-native > /www/index.html; httpd -f -p 8000 -h /www' > /dev/null
knarr run -d --name web --network harbour -v hold:/data -e BACKEND=native:8000 -p 8080:8080 web > /dev/null
until fetch web:8080/ > /dev/null 2>&1 && fetch 127.0.0.1:8000/ > /dev/null 2>&1; do :; done
has "native reaches wasm by name" hello "$(fetch web:8080/)"
has "wasm reaches native by name" i-am-native "$(fetch web:8080/native)"
has "a published port answers" hello "$(wget -q -O - http://127.0.0.1:8080/)"
has "stats of both" web "$(knarr stats --no-stream)"
knarr pause native > /dev/null; is "pause" paused "$(knarr inspect native --format '{{.State.Status}}')"
knarr unpause native > /dev/null; is "unpause" running "$(knarr inspect native --format '{{.State.Status}}')"
for name in native web; do
  id=$(knarr inspect $name --format '{{.Id}}')
  knarr rm -f $name > /dev/null
  is "no cgroup of $name is left" "" "$(find /sys/fs/cgroup -name "$id*")"
done
kill $(pidof knarrd)
[ $failed = 0 ] && echo "knarr-vm: all passed" || { echo "knarr-vm: failures"; tail -20 /tmp/knarrd.log; }
