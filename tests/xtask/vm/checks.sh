# What both scripts say things with.
failed=0
is() { # is NAME WANT GOT
  if [ "$2" = "$3" ]; then echo "ok $1"; else echo "not ok $1: want '$2', got '$3'"; failed=1; fi
}
has() { # has NAME NEEDLE TEXT
  case "$3" in *"$2"*) echo "ok $1" ;; *) echo "not ok $1: no '$2' in '$3'"; failed=1 ;; esac
}
# stamp SECTION: how long the machine has run, for whoever wants it faster.
stamp() { echo "-- $1, at $(cut -d ' ' -f 1 /proc/uptime) s"; }
