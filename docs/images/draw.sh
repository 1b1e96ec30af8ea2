#!/usr/bin/env bash
# Draws docs/images/report.png, the picture in README, from the report of a run. Needs chromium; Pillow comes with matplotlib.
#
#   bash docs/images/draw.sh runs/quickstart/report.html
set -euo pipefail
[[ $# == 1 ]] || { echo "usage: bash docs/images/draw.sh REPORT.html" >&2; exit 2; }
page="$(realpath "$1")" picture="$(dirname "${BASH_SOURCE[0]}")/report.png"
chromium --headless --no-sandbox --disable-gpu --disable-background-networking --hide-scrollbars --window-size=1100,1475 --screenshot="$picture" "file://$page"
# Few colours: a page of curves and text needs no more, and a picture in a repository stays for ever.
python -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").quantize(64).save(sys.argv[1], optimize=True)' "$picture"
