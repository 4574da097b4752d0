#!/bin/sh
# Builds mbedTLS's ssl_client2 and ssl_server2, which speak RFC 9146, in the directory given. The sources are those that the crate
# psa-crypto-sys carries (mbedTLS 3.5.1); nothing of it is linked into ours. It needs cargo, make, a C compiler and python3.
set -eu
dir=$1
mkdir -p "$dir"
[ -x "$dir/mbedtls/programs/ssl/ssl_server2" ] && exit 0
mkdir -p "$dir/fetch/src"
cat > "$dir/fetch/Cargo.toml" <<'TOML'
[package]
name = "fetch"
version = "0.0.0"
edition = "2021"

[dependencies]
psa-crypto-sys = "=0.13.0"

[workspace]
TOML
: > "$dir/fetch/src/lib.rs"
cd "$dir/fetch"
cargo fetch --quiet
vendor=$(cargo metadata --format-version 1 | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(os.path.join(os.path.dirname(next(p["manifest_path"] for p in packages if p["name"] == "psa-crypto-sys")), "vendor"))')
rm -rf "$dir/mbedtls"
cp -r "$vendor" "$dir/mbedtls"
chmod -R u+w "$dir/mbedtls"
cd "$dir/mbedtls"
make -s lib
cd programs
make -s ssl/ssl_client2 ssl/ssl_server2
