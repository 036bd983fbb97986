#!/usr/bin/env bash
# The presets are what launch/make_presets.py writes, and every *.textproto in configs/ is a RunConfig.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 launch/make_presets.py --check
count=0
bad=0
while read -r file; do
  count=$((count + 1))
  if ! message=$(protoc --encode=ttt.config.RunConfig configs/run.proto <"$file" 2>&1 >/dev/null); then
    echo "$file:1: $message"
    bad=$((bad + 1))
  fi
done < <(find configs -name '*.textproto' | sort)
echo "presets: $count files, $bad problems"
[[ $bad -eq 0 && $count -gt 0 ]]
