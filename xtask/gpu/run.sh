#!/usr/bin/env bash
# Runs the tests that need a GPU, and says what of it is there. Needs no cargo: this folder and glibc 2.36 are enough.
#
#   ./run.sh [--require] [NAME..]
#
# --require  a test that cannot run is a failure, and so is nothing that ran
# NAME       only tests whose name contains one of them
#
# KV_CUFILE_LIB names NVIDIA's libcufile where the loader does not find it. KVSTRATA_GPU_DIR is a folder on the disk to test
# against (default: the current one). bin/kvstrata is the command: `bin/kvstrata bench gpu --path DIR`.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
limit=${KVSTRATA_GPU_LIMIT:-300}

require=
names=()
for arg in "$@"; do
    case $arg in
        --require) require=1 ;;
        -*) sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
        *) names+=("$arg") ;;
    esac
done

driver=none
[ -r /proc/driver/nvidia/version ] && driver=$(sed -n '1s/.*  \([0-9.]*\)  .*/\1/p' /proc/driver/nvidia/version)
devices=none
if command -v nvidia-smi >/dev/null 2>&1; then
    listed=$(timeout 20 nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sort | uniq -c | sed 's/^ *//' | paste -sd, -)
    [ -n "$listed" ] && devices=$listed
elif ls /dev/nvidia[0-9]* >/dev/null 2>&1; then
    devices=$(ls /dev/nvidia[0-9]* | wc -l)
fi
cufile=${KV_CUFILE_LIB:-$( (ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null) | sed -n 's/.*libcufile\.so.* => //p' | head -1)}
nvfs=absent
grep -qs '^nvidia_fs ' /proc/modules && nvfs=loaded
[ -e /proc/modules ] || nvfs="unknown (no /proc/modules)"
udev=none
ls /run/udev/data/b* >/dev/null 2>&1 && udev=$(ls /run/udev/data/b* | wc -l)
echo "gpu: driver ${driver:-none}; devices $devices; libcufile ${cufile:-none}; nvidia-fs $nvfs; udev records of block devices $udev"

[ -n "$require" ] && export KVSTRATA_REQUIRE_GPU=1
passed=0 failed=0 ignored=0 broken=0
for binary in "$here"/tests/*; do
    [ -x "$binary" ] || continue
    echo "== $(basename "$binary")"
    log=$(timeout --kill-after=10 "$limit" "$binary" ${names[@]+"${names[@]}"} 2>&1)
    code=$?
    echo "$log"
    [ $code -eq 124 ] && echo "== $(basename "$binary") did not end within $limit s"
    counts=$(echo "$log" | sed -n 's/^test result: [A-Za-z]*\. \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' | tail -1)
    read -r p f i <<<"${counts:-0 0 0}"
    passed=$((passed + p)) failed=$((failed + f)) ignored=$((ignored + i))
    [ $code -ne 0 ] && broken=$((broken + 1))
done
echo "gpu: $passed passed, $failed failed, $ignored ignored, $broken programs not ok"
if [ -n "$require" ] && [ $passed -eq 0 ]; then
    echo "gpu: --require, and nothing ran"
    exit 1
fi
[ $broken -eq 0 ]
