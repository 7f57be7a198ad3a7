#!/bin/sh
# Refreshes the vendored OpenSeadragon through npm:  docs/vendor_openseadragon.sh 6.1.1
# Copies the minified file and the licence as they are and writes down version and hash; a git diff shows what changed.
set -eu
version=${1:?which version? for instance: $0 6.1.1}
target=$(cd "$(dirname "$0")/../wsi_ips/report/viewer/static" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "openseadragon@$version" >/dev/null
tar xzf "openseadragon-$version.tgz"
cp package/build/openseadragon/openseadragon.min.js "$target/openseadragon.min.js"
cp package/LICENSE.txt "$target/openseadragon.LICENSE.txt"
hash=$(sha512sum "$target/openseadragon.min.js" | cut -d' ' -f1)
cat > "$target/openseadragon.txt" <<END
OpenSeadragon $version, openseadragon.min.js as published, unchanged. Licence: openseadragon.LICENSE.txt (BSD-3-Clause).
sha512 $hash
Refreshed by docs/vendor_openseadragon.sh
END
echo "OpenSeadragon $version is in $target"
