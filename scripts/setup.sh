# Makes .venv with netloom and everything it needs, once; sourced by the other scripts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=""
for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
  if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
    "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "netloom needs Python 3.10 to 3.13, and none was found. Install one, or name it: PYTHON=... $0" >&2
  exit 2
fi

fingerprint=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat .venv/.netloom-installed 2>/dev/null || true)" != "$fingerprint" ]; then
  echo "Setting up .venv (once; PyTorch is the large part) ..." >&2
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --quiet \
    --constraint constraints.txt --editable '.[dev]'
  echo "$fingerprint" >.venv/.netloom-installed
fi
