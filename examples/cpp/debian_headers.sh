#!/usr/bin/env bash
# Unpacks ONNX Runtime's C++ headers from Debian 13's package into a folder, whichever release this Debian is; nothing
# is installed. Prints the folder to include.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed "s/$release/trixie/g" > "$folder/debian.sources"
apt=(apt-get -qq -o Dir::Etc::sourcelist="$folder/debian.sources" -o Dir::Etc::sourceparts=/dev/null
     -o Dir::State::lists="$folder/lists" -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root
     -o Acquire::Retries=5)
"${apt[@]}" update >&2
(cd "$folder" && "${apt[@]}" download libonnxruntime-dev >&2)
dpkg-deb -x "$folder"/libonnxruntime-dev_*.deb "$folder/headers"
dirname "$(find "$folder/headers" -name onnxruntime_cxx_api.h)"
