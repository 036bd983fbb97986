#pragma once
// Hugging Face model directories: config.json, names and weights, in both directions.
//
// Inside the program tensors have the names of ttt-lm-pytorch's state_dict for every mixer; a
// softmax-attention model is a LlamaForCausalLM there, with Llama's names and rotary halves.

#include <cstdint>
#include <span>
#include <string>

#include "configs/run.pb.h"
#include "data/interchange/safetensors.h"

namespace ttt::data {

/// The model of DIRECTORY/config.json (model_type "ttt" or "llama"). Errors: 66 when missing, 65
/// naming the key when a value is missing, mistyped or not supported.
config::ModelConfig read_hf_config(const std::string& directory);

/// The Hugging Face name of a tensor: native for TTT, Llama's for attention.
std::string hf_name(const config::ModelConfig& model, const std::string& native_name);

/// Throws 64 naming the field when the model has no Hugging Face counterpart: a step of the
/// ablation ladder, linear attention, or attention with gate, shared q/k or convolutions.
void check_exportable(const config::ModelConfig& model);

struct HfExport {
  std::string tokenizer;               // path of a SentencePiece model; empty: none
  std::int64_t context_length = 2048;  // max_position_embeddings
  bool bf16 = false;                   // weights as BF16 instead of F32
  std::int64_t bos_id = 1;             // negative: none
  std::int64_t eos_id = 2;
};

/// Writes a directory that transformers loads as it is (for TTT with trust_remote_code): weights,
/// config, tokenizer, model card, modelling code. Atomic: written beside and renamed. `tensors` are
/// the native names and F32, F64 or BF16 views; lm_head.weight is left out when tied. Attention
/// trained with interleaved rotary pairs gets its q and k rows reordered to halves.
/// Errors: 64 as check_exportable, 73 when `directory` exists and is not empty, 74.
void export_hf(const std::string& directory, const config::ModelConfig& model,
               std::span<const NamedTensor> tensors, const HfExport& options);

/// Fills the views (native names; any floating-point type) from DIRECTORY's weights. `model` is
/// read_hf_config's (so attention has halves). The set of names and the shapes must match exactly:
/// one 65 error lists every missing, unexpected or wrongly shaped tensor.
void load_hf_weights(const std::string& directory, const config::ModelConfig& model,
                     std::span<const NamedTensor> tensors);

}  // namespace ttt::data
