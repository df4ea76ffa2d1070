#!/bin/sh
# Builds the guests into prebuilt/ from source, with Debian's packages
# rustc-web, rust-web-src and wasi-libc and the linkers of rustup's toolchain.
#
# Debian's compiler knows the Wasm targets and its sources are at hand, but no
# standard library is prebuilt: cargo builds it once (about 40 s), from exactly
# the compiler's own version. Where the `wasm32-wasip1` target of rustup is
# installed, that needs none of this: `cargo build --target wasm32-wasip1`.
#
#   GUEST_RUSTC   Debian's rustc         (/usr/bin/rustc)
#   WASI_LIBC     crt1-command.o, libc.a (/usr/lib/wasm32-wasi)
#   GUEST_TARGET  where cargo builds     (target/guests of this repository)
#   OUTPUT        where the guests go    (prebuilt beside this file)
set -eu
cd "$(dirname "$0")"

rustc=${GUEST_RUSTC:-/usr/bin/rustc}
libc=${WASI_LIBC:-/usr/lib/wasm32-wasi}
output=${OUTPUT:-prebuilt}
linkers=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin

for needed in "$rustc" "$libc/crt1-command.o" "$linkers/rust-lld"; do
    if ! [ -e "$needed" ]; then
        echo "build.sh: $needed is missing (packages: rustc-web rust-web-src wasi-libc)" >&2
        exit 1
    fi
done

# Nothing of the machine that builds them belongs in the guests.
remaps="--remap-path-prefix=$(pwd)=/guests --remap-path-prefix=$("$rustc" --print sysroot)/lib/rustlib/src/rust=/rust"
for crates in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    remaps="$remaps --remap-path-prefix=$crates=/crates"
done

# $1: guest, $2: what it is called in the end, $3: linker, the rest: its arguments
build() {
    guest=$1 name=$2 linker=$3
    shift 3
    # The flag for a standard library of one's own is only known to nightly
    # compilers, or to those that are told to be one.
    RUSTC_BOOTSTRAP=1 RUSTC=$rustc RUSTFLAGS=$remaps CARGO_TARGET_DIR=${GUEST_TARGET:-../target/guests} \
        CARGO_TARGET_WASM32_WASIP1_LINKER=$linkers/$linker \
        cargo rustc --quiet --release --locked -Zbuild-std=std,panic_abort \
        --target wasm32-wasip1 --package "$guest" --bin "$guest" -- \
        -Clink-self-contained=no -Clink-arg="$libc/crt1-command.o" -Lnative="$libc" "$@"
    mkdir -p "$output"
    cp "${GUEST_TARGET:-../target/guests}/wasm32-wasip1/release/$guest.wasm" "$output/$name.wasm"
}

component() {
    build "$1" "$2" wasm-component-ld -Clink-arg=--wasm-ld-path="$linkers/gcc-ld/wasm-ld"
}

build hello hello rust-lld
# The same program as a component of WASI 0.2: the linker adds an adapter.
component hello hello-component
component web web
component greeter greeter
chmod 644 "$output"/*.wasm
