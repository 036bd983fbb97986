#!/usr/bin/env bash
# Everything that tests/gpu.sh needs on a machine without compilers or packages, beside a checkout of this repository:
# the programs and the shared libraries they use, as a folder and as its archive. Not in it are the C library, which must
# not be older there than the programs ask for (printed), and cuBLASLt, NCCL and cuDNN, which come with that
# machine's CUDA.
#
#   bash tests/gpu_bundle.sh DIR        makes DIR and DIR.tar.xz
#
# TTT_GPU_ARCH: the device's architecture (90a-real: H100 and H200). TTT_JOBS: compile jobs (the number of cores).
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=${1:?usage: bash tests/gpu_bundle.sh DIR}
build=build/cuda_bundle
programs=(ttt cuda_tests cuda_model_tests cuda_bench)
most_mib=64

# Processors differ from machine to machine: nothing beyond AVX2. The old kind of run path holds for the libraries'
# libraries too, so that nobody else's LD_LIBRARY_PATH is touched.
cmake -S . -B "$build" -G Ninja -DTTT_CUDA=ON -DCMAKE_BUILD_TYPE=Release -DTTT_CPU_ARCH=x86-64-v3 \
  -DCMAKE_CUDA_ARCHITECTURES="${TTT_GPU_ARCH:-90a-real}" \
  "-DCMAKE_BUILD_RPATH=\$ORIGIN/../lib" -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags \
  ${CUDNN_FRONTEND_INCLUDE_DIR:+-DCUDNN_FRONTEND_INCLUDE_DIR="$CUDNN_FRONTEND_INCLUDE_DIR"}
cmake --build "$build" -j "${TTT_JOBS:-$(nproc)}" --target "${programs[@]}"

rm -rf "$bundle" "$bundle.tar.xz"
mkdir -p "$bundle/bin" "$bundle/lib"
# The C library's parts and what comes with CUDA.
left_out='/(lib(c|m|pthread|dl|rt|resolv|util)|ld-linux[^/]*|lib(cublas|cublasLt|nccl|cudnn|cuda|cudart)[^/]*)\.so'
for program in "${programs[@]}"; do
  strip -o "$bundle/bin/$program" "$build/bin/$program"
  ldd "$build/bin/$program" | sed -nE 's/.* => (\/[^ ]+) .*/\1/p' | grep -vE "$left_out" | while read -r library; do
    cp -Lu "$library" "$bundle/lib/"
  done
done
chmod -R u+w "$bundle"
strip --strip-unneeded "$bundle"/lib/*

# What the bundle's own programs still take from this machine, of all that they load.
outside=$(for program in "$bundle"/bin/*; do ldd "$program"; done | sed -nE 's/.* => (\/[^ ]+) .*/\1/p' |
  grep -v "^$(realpath "$bundle")" | grep -vE "$left_out" | sort -u || true)
if [[ -n $outside ]]; then
  echo "gpu_bundle: not in the bundle: $outside" >&2
  exit 1
fi
needed=$(objdump -T "$bundle"/bin/* "$bundle"/lib/* | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -n 1)
# The programs hold the same kernels: a dictionary that spans them stores them once.
XZ_OPT="--lzma2=preset=6,dict=128MiB" tar -C "$bundle" -cJf "$bundle.tar.xz" bin lib
mib=$(($(stat -c %s "$bundle.tar.xz") / 1048576))
echo "$bundle: $(du -sm "$bundle" | cut -f1) MiB; $bundle.tar.xz: $mib MiB; needs $needed or later and the driver for CUDA 13"
if ((mib > most_mib)); then
  echo "gpu_bundle: larger than $most_mib MiB" >&2
  exit 1
fi
