#!/usr/bin/env bash
# A folder with everything that tests/gpu.sh needs on a machine without compilers or packages: the programs of the cuda
# preset and the shared libraries they use, except the C library and what comes with that machine's CUDA.
#
#   bash tests/gpu_bundle.sh DIR
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=${1:?usage: bash tests/gpu_bundle.sh DIR}
cmake --preset cuda
cmake --build --preset cuda -j "$(nproc)" --target ttt cuda_tests cuda_model_tests
mkdir -p "$bundle/bin" "$bundle/lib"
for program in ttt cuda_tests cuda_model_tests; do
  strip -o "$bundle/bin/$program" "build/cuda/bin/$program"
  ldd "build/cuda/bin/$program" | sed -nE 's/.* => (\/[^ ]+) .*/\1/p' |
    grep -vE '/(libc|libm|libpthread|libdl|librt|ld-linux[^/]*|libcublas[^/]*|libnccl|libcudnn[^/]*)\.so' | while read -r library; do
    cp -Lu "$library" "$bundle/lib/"
  done
done
du -sh "$bundle"
