# Ends a world when its test has: stdin is a pipe whose other end only the test
# has, so that it closes however the test ends, also killed by its runner.
# Nothing here is needed after an orderly end, and nothing here minds that.
# `world` is the world's directory; with `keep` all but its exec root stays.
cat > /dev/null

# named: processes whose command lines name this world (the daemon, shims, clients).
named() { printf %s "$world/" | grep -lsaF -f - /proc/[0-9]*/cmdline | grep -o '[0-9][0-9]*'; }
# groups ID: a container's cgroups.
groups() { find /sys/fs/cgroup -mindepth 2 -maxdepth 4 -type d -name "$1" 2> /dev/null; }

kill -9 $(named) 2> /dev/null
for id in $(ls "$world/run/containers" 2> /dev/null); do
  tries=0
  while groups=$(groups "$id"); [ -n "$groups" ] && [ $tries -lt 300 ]; do
    for group in $groups; do
      kill -9 $(cat "$group/cgroup.procs") 2> /dev/null
      # Frozen processes die when they thaw.
      [ -e "$group/freezer.state" ] && echo THAWED > "$group/freezer.state"
      [ -e "$group/cgroup.freeze" ] && echo 0 > "$group/cgroup.freeze"
      rmdir "$group" && rmdir "${group%/*}"
    done 2> /dev/null
    tries=$((tries + 1))
  done
done
# /run is memory: it is empty after a power cut.
[ -n "$keep" ] && exec rm -rf "$world/run"
umount -l "$world/data/volumes" "$world/data" 2> /dev/null
rm -rf "$world"
