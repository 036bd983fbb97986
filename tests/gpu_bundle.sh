#!/usr/bin/env bash
# Everything that tests/gpu.sh needs on a machine without compilers or packages, beside a checkout of this repository:
# the programs and the shared libraries they use, as a folder and as its archive. Not in it are the C library, which must
# not be older there than the programs ask for (printed), and cuBLASLt, NCCL and cuDNN, which come with that
# machine's CUDA.
#
#   bash tests/gpu_bundle.sh DIR        makes DIR and DIR.tar.xz
#
# TTT_GPU_ARCH: the device's architecture (90a-real: H100 and H200). TTT_JOBS: compile jobs (the number of cores).
# CUDNN_FRONTEND_INCLUDE_DIR: where cudnn_frontend.h lies (pip's nvidia-cudnn-frontend); without it the parts with cuDNN's
# attention fail. TTT_BUNDLE_MIB: the most that the archive may have: where checkout and archive are sent together in at most
# 64 MiB, what the tracked files leave, less 1 (the default).
set -euo pipefail
bundle=$(realpath -m "${1:?usage: bash tests/gpu_bundle.sh DIR}")
cd "$(dirname "$0")/.."
build=build/cuda_bundle
programs=(ttt cuda_tests cuda_model_tests cuda_bench)
tracked_bytes=$(git ls-files -z | xargs -0 -r stat -c %s 2>/dev/null | awk '{ sum += $1 } END { print sum + 0 }' || true)
most_mib=${TTT_BUNDLE_MIB:-$((64 - (tracked_bytes + 1048575) / 1048576 - 1))}

# Processors differ from machine to machine: nothing beyond AVX2.
cmake -S . -B "$build" -G Ninja -DTTT_CUDA=ON -DCMAKE_BUILD_TYPE=Release -DTTT_CPU_ARCH=x86-64-v3 \
  -DCMAKE_CUDA_ARCHITECTURES="${TTT_GPU_ARCH:-90a-real}" \
  ${CUDNN_FRONTEND_INCLUDE_DIR:+-DCUDNN_FRONTEND_INCLUDE_DIR="$CUDNN_FRONTEND_INCLUDE_DIR"}
cmake --build "$build" -j "${TTT_JOBS:-$(nproc)}" --target "${programs[@]}"

rm -rf "$bundle" "$bundle.tar.xz"
mkdir -p "$bundle/bin" "$bundle/programs" "$bundle/lib"
# The C library's parts and what comes with CUDA.
left_out='/(lib(c|m|pthread|dl|rt|resolv|util)|ld-linux[^/]*|lib(cublas|cublasLt|nccl|cudnn|cuda|cudart)[^/]*)\.so'
libraries_of() { ldd "$1" | sed -nE 's/.* => (\/[^ ]+) .*/\1/p' | grep -vE "$left_out"; }
for program in "${programs[@]}"; do
  strip -o "$bundle/programs/$program" "$build/bin/$program"
  libraries_of "$build/bin/$program" | while read -r library; do cp -Lu "$library" "$bundle/lib/"; done
  # A run path would not do: some libraries have one of their own, which hides the program's.
  cat >"$bundle/bin/$program" <<'END'
#!/bin/sh
bundle=$(dirname "$(dirname "$(readlink -f "$0")")")
export LD_LIBRARY_PATH="$bundle/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$bundle/programs/$(basename "$0")" "$@"
END
  chmod +x "$bundle/bin/$program"
done
chmod -R u+w "$bundle"
git describe --always --dirty >"$bundle/COMMIT" || echo unknown >"$bundle/COMMIT"
# ICU comes with libxml2, which libarchive and hwloc ask for; nothing here has it convert text. Its tables are 30 MiB: their one
# symbol with nothing behind it links, and ICU, if called, would refuse it as no data of its own.
for data in "$bundle"/lib/libicudata.so.*; do
  [[ -f $data ]] || continue
  symbol=$(objdump -T "$data" | grep -oE 'icudt[0-9]+_dat$')
  echo "const char $symbol[64] = {0};" | cc -shared -fPIC -x c - -Wl,-soname,"$(basename "$data")" -o "$data"
done
strip --strip-unneeded "$bundle"/lib/*

# What the bundle's programs would still take from this machine, of all that they load.
outside=$(for program in "$bundle"/programs/*; do LD_LIBRARY_PATH=$bundle/lib libraries_of "$program"; done |
  grep -v "^$(realpath "$bundle")/" | sort -u || true)
if [[ -n $outside ]]; then
  echo "gpu_bundle: not in the bundle: $outside" >&2
  exit 1
fi
needed=$(objdump -T "$bundle"/programs/* "$bundle"/lib/* | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -n 1)
# The programs hold the same kernels: a dictionary that spans them stores them once.
XZ_OPT="--lzma2=preset=6,dict=128MiB" tar -C "$bundle" -cJf "$bundle.tar.xz" bin programs lib COMMIT
mib=$((($(stat -c %s "$bundle.tar.xz") + 1048575) / 1048576))
echo "$bundle: $(du -sm "$bundle" | cut -f1) MiB; $bundle.tar.xz: $mib MiB; needs $needed or later and the driver for CUDA 13"
if ((mib > most_mib)); then
  echo "gpu_bundle: larger than $most_mib MiB (TTT_BUNDLE_MIB)" >&2
  exit 1
fi
