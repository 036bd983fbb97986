#!/usr/bin/env bash
# From a fresh clone to a trained, evaluated and exported language model, in about ten minutes on two cores.
#
# The text is real and free of copyright: C. H. Spurgeon, The Treasury of David (Debian: sword-comm-tdavid),
# 12 MB, 151 long documents of which every fifteenth is held out whole. Run it again and it goes on from where
# it stopped, or only shows the results. STEPS=N trains longer or shorter (default 200); RUN=DIR puts the run
# elsewhere (default runs/quickstart).
set -euo pipefail
cd "$(dirname "$0")/.."
steps=${STEPS:-200}
run=${RUN:-runs/quickstart}
tokens=$run/tokens
model=$run/model
ttt=build/bin/ttt

step() { printf '\n== %s\n' "$*"; }

step "packages and build"
bash launch/install_packages.sh
bash launch/install_packages.sh launch/quickstart_packages.txt
[[ -f build/build.ninja ]] || cmake --preset release >/dev/null
cmake --build build --target ttt
. launch/mpi_env.sh

step "text to tokens: $tokens"
if [[ ! -f $tokens/manifest.textproto ]]; then
  mkdir -p "$run/text"
  mod2imp TDavid -s 2>/dev/null | python3 launch/quickstart_corpus.py "$run/text/train.jsonl" "$run/text/validation.jsonl" 15
  $ttt prepare "$run/text/train.jsonl" --validation "$run/text/validation.jsonl" --train-tokenizer 4096 -o "$tokens"
else
  echo "already there"
fi

step "training TTT-Linear (4.3M parameters) on two ranks: $model"
mpirun -np 2 $ttt train --config configs/small.textproto --set name=quickstart --set output_directory="$model" \
  --set data.train="$tokens" --set data.validation="$tokens" --set train.steps="$steps" \
  --set optimizer.decay_steps="$steps" --set optimizer.warmup_steps=$((steps / 10)) \
  --set checkpoint.interval_steps=50 --set eval.interval_steps=50 --set eval.num_windows=32

step "held-out loss by context length and by position"
mpirun -np 2 $ttt eval -m "$model" --windows 64 --context 128 --context 512 --output "$model"

step "a continuation"
$ttt generate -m "$model" -p "The Lord is my shepherd" --max-new-tokens 60 --temperature 0.8 --top-p 0.9 --seed 1

step "export for Hugging Face transformers: $run/exported"
if [[ ! -f $run/exported/config.json ]]; then
  $ttt export -m "$model" -o "$run/exported"
else
  echo "already there"
fi

step "report"
$ttt report "$model"
echo "curves: $model/loss_by_position.svg, $model/inner_loss_layer_*.svg, tensorboard --logdir $model"
