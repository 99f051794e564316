#!/usr/bin/env bash
# Builds the C++ examples in a Debian 13 of their own, in the folder that is given, with the commands of
# examples/cpp/README.md and no package but theirs. Needs debootstrap and root. Prints the folder of the programs.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p "$1"
root=$(cd "$1" && pwd)/root
programs=$(cd "$1" && pwd)/programs
if [ ! -e "$root/installed" ]; then
  rm -rf "$root"
  debootstrap --variant=minbase trixie "$root" >&2
  touch "$root/installed"
fi
rm -rf "$root/sde-onnx" "$programs"
mkdir -p "$root/sde-onnx/examples" "$programs"
cp -r examples/cpp "$root/sde-onnx/examples"
sed -n '/<!-- debian -->/,/<!-- \/debian -->/p' examples/cpp/README.md | sed -n '/^```/,/^```/{/^```/!p}' > "$root/commands"
[ -s "$root/commands" ] || { echo "examples/cpp/README.md has no commands for Debian" >&2; exit 1; }
DEBIAN_FRONTEND=noninteractive chroot "$root" sh -exc 'apt-get -qq update; cd /sde-onnx; . /commands' >&2
for program in sample evaluate; do
  # On this machine's files, with that Debian's libraries; without what its ONNX Runtime says of its operators.
  cat > "$programs/$program" <<WRAPPER
#!/usr/bin/env bash
exec $root/lib64/ld-linux-x86-64.so.2 --library-path $root/usr/lib/x86_64-linux-gnu $root/sde-onnx/$program "\$@" \\
  2> >(grep --line-buffered -v -e '^Schema error: ' -e '^\$' >&2)
WRAPPER
  chmod +x "$programs/$program"
done
echo "$programs"
