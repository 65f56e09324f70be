#!/usr/bin/env bash
# Draw the pictures of the README from the sample images: docs/images/make.sh, with llm2clip-* and chromium on the path
# (and fonts for Chinese, Arabic and Devanagari).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
work=$(mktemp -d)
trap 'kill "${server:-0}" 2>/dev/null; rm -rf "$work"' EXIT

shoot() { # ADDRESS FILE WIDTH,HEIGHT
    chromium --headless=new --no-sandbox --hide-scrollbars --virtual-time-budget=8000 --window-size="$3" \
        --screenshot="$work/shot.png" "$1" 2>/dev/null
    python -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("P", palette=Image.Palette.ADAPTIVE).save(sys.argv[2], optimize=True)' \
        "$work/shot.png" "$2"
}

llm2clip-search --index sample: --each "sunset over the sea" "雪山" -k 5 --html "$work/gallery.html" >/dev/null
shoot "file://$work/gallery.html" gallery.png 1180,1040

{
    echo '<!DOCTYPE html><meta charset="utf-8"><style>body{margin:0;padding:14px 18px;background:#16181b;color:#e6e3dd}'
    echo 'pre{margin:0;font:14px/1.45 "DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace}b{color:#6cc9b0}</style><pre>'
    for query in "sunset over the sea" "雪山"; do
        echo "<b>\$ llm2clip-search \"$query\" -k 4</b>"
        COLUMNS=80 llm2clip-search --index sample: "$query" -k 4 2>/dev/null | python -c 'import html, sys; print(html.escape(sys.stdin.read()))'
    done
} >"$work/terminal.html"
shoot "file://$work/terminal.html" terminal.png 760,470

llm2clip-serve --index sample: --port 8765 &
server=$!
until python -c 'import urllib.request as r; r.urlopen("http://127.0.0.1:8765/readyz")' 2>/dev/null; do sleep 1; done
shoot "http://127.0.0.1:8765/?q=snowy+mountains" page.png 1180,820
