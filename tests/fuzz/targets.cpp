#include "tests/fuzz/targets.h"

#include <zlib.h>
#include <zstd.h>

#include <filesystem>
#include <numeric>

#include "configs/run_config.h"
#include "data/checkpoint/shard.h"
#include "data/corpus/parquet_reader.h"
#include "data/corpus/reader.h"
#include "data/files.h"
#include "data/interchange/huggingface.h"
#include "data/interchange/safetensors.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokens/order_file.h"
#include "data/tokens/prepare.h"
#include "data/tokens/token_file.h"
#include "tests/data/checkpoint_fixture.h"
#include "tests/data/temporary_directory.h"

namespace ttt::fuzz {
namespace {

using data::contents_of;
using data::write_bytes;

constexpr std::string_view kDigestPrefix = "# xxh3_128 ";

std::string put(const std::string& directory, const std::string& name, const std::string& bytes) {
  const std::string path = directory + "/" + name;
  std::filesystem::remove(path);  // ext4 flushes a file that is truncated and written again
  write_bytes(path, bytes);
  return path;
}

// ---- Configurations --------------------------------------------------------------------------

std::vector<std::string> preset_texts(const std::string& /*directory*/) {
  std::vector<std::string> texts;
  for (const char* name : {"tiny", "small_attention", "ablation/row0", "pile/ttt_mlp_m_125m_2k"}) {
    texts.push_back(contents_of(fmt::format("{}/configs/{}.textproto", TTT_SOURCE_DIR, name)));
  }
  return texts;
}

void read_config(const std::string& /*directory*/, const std::string& input) {
  std::vector<std::string> problems;
  const config::RunConfig config = config::parse_run_config(input, "input", problems);
  const auto more = config::find_problems(config, 4);
  problems.insert(problems.end(), more.begin(), more.end());
  config::throw_problems("input", problems);
}

void read_override(const std::string& /*directory*/, const std::string& input) {
  config::RunConfig config;
  const std::string problem = config::apply_override(config, input);
  if (!problem.empty()) config::throw_problems("input", {problem});
}

// ---- Checkpoints -----------------------------------------------------------------------------

data::State checkpoint_state() {
  data::State state;
  state.fill_with_numbers();
  return state;
}

std::vector<std::string> manifest_texts(const std::string& directory) {
  std::string text =
      contents_of(data::save(directory, checkpoint_state(), 9, 2) + "/manifest.textproto");
  text.resize(text.rfind(kDigestPrefix));
  return {text};
}

// The digest at the end is made right, or nothing behind it would ever be reached.
void read_manifest(const std::string& directory, const std::string& input) {
  const std::string digest = data::xxh3_128_hex(std::as_bytes(std::span(input)));
  put(directory, "manifest.textproto", fmt::format("{}{}{}\n", input, kDigestPrefix, digest));
  (void)data::tensors_of(data::read_manifest(directory));
}

std::vector<std::string> checkpoint_shards(const std::string& directory) {
  const std::string checkpoint = data::save(directory, checkpoint_state(), 9, 2);
  return {contents_of(checkpoint + "/rank-00000.h5")};
}

void read_checkpoint_shard(const std::string& directory, const std::string& input) {
  const data::State into;
  data::read_shard(put(directory, "rank-00000.h5", input),
                   data::slices_of(into.tensors, {data::even_range(into.values.numel(), 0, 2)}),
                   into.flat());
}

// ---- Tokens ----------------------------------------------------------------------------------

std::vector<std::string> corpus_manifests(const std::string& /*directory*/) {
  return {
      fmt::format("format_version: {} vocab_size: 259 bos_id: 256 eos_id: 257 train_tokens: 3 "
                  "train_documents: 1 tokenizer: \"tokenizer.json\" "
                  "files {{ name: \"train-00000.h5\" num_bytes: 4 xxh3_128: \"0f\" }}\n",
                  data::kShardFormatVersion)};
}

void read_corpus_manifest(const std::string& directory, const std::string& input) {
  put(directory, "manifest.textproto", input);
  put(directory, "train-00000.h5", "data");
  try {
    const config::CorpusManifest manifest = data::read_corpus_manifest(directory);
    for (const std::string& path : data::corpus_shards(manifest, directory, data::Split::kTrain)) {
      if (!path.starts_with(directory)) std::abort();
    }
  } catch (const Error& error) {  // a file that is not there is the manifest's fault here
    fail(error.code() == ExitCode::kMissingInput ? ExitCode::kCorruptInput : error.code(), "{}",
         error.what());
  }
}

std::vector<std::string> token_shards(const std::string& directory) {
  std::vector<std::string> shards;
  for (const std::int64_t vocabulary : {300, 70000}) {
    const std::string path = directory + "/tokens.h5";
    data::TokenShardWriter writer(path, vocabulary, 1, 2);
    std::vector<std::int32_t> document(37);
    std::iota(document.begin(), document.end(), 5);
    writer.append_document(document);
    writer.append_document(std::span(document).first(3));
    writer.finish();
    shards.push_back(contents_of(path));
  }
  return shards;
}

void read_tokens(const std::string& path) {
  const data::TokenArray tokens = data::TokenArray::open({path}, data::Split::kTrain);
  std::vector<std::int64_t> some(
      static_cast<std::size_t>(std::min<std::int64_t>(tokens.num_tokens(), 64)));
  tokens.read(0, some);
  tokens.read(tokens.num_tokens() - std::ssize(some), some);
  tokens.verify(tokens.vocab_size() > 0 ? tokens.vocab_size() : 300);
}

void read_token_shard(const std::string& directory, const std::string& input) {
  const std::string path = put(directory, "tokens.h5", input);
  read_tokens(path);
  (void)data::read_document_offsets(path);
}

std::vector<std::string> npy_arrays(const std::string& /*directory*/) {
  std::vector<std::string> arrays;
  for (const char* type : {"<u2", "<i8"}) {
    std::string header =
        fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': (16,), }}", type);
    header += std::string(117 - header.size(), ' ') + "\n";
    arrays.push_back(std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header +
                     std::string(type[2] == '2' ? 32 : 128, '\1'));
  }
  arrays.back().resize(arrays.back().size() - 128);
  for (int i = 0; i < 16; ++i) arrays.back() += std::string("\7\0\0\0\0\0\0\0", 8);
  return arrays;
}

void read_npy(const std::string& directory, const std::string& input) {
  read_tokens(put(directory, "tokens.npy", input));
}

// Megatron's index of the tokens 1 2 3 4 5, in two sequences.
std::vector<std::string> megatron_indices(const std::string& /*directory*/) {
  const std::string u64(7, '\0');
  return {std::string("MMIDIDX\0\0\1", 10) + u64 + '\x08' + '\2' + u64 + '\3' + u64 +
          std::string("\3\0\0\0\2\0\0\0", 8) + std::string(8, '\0') + '\6' + u64 +
          std::string(8, '\0') + '\1' + u64 + '\2' + u64};
}

void read_megatron(const std::string& directory, const std::string& input) {
  put(directory, "tokens.idx", input);
  read_tokens(put(directory, "tokens.bin", std::string("\1\0\2\0\3\0\4\0\5\0", 10)));
}

// ---- Models of others ------------------------------------------------------------------------

std::vector<std::string> safetensors_files(const std::string& directory) {
  const std::string path = directory + "/model.safetensors";
  const Tensor f32 = Tensor::zeros({2, 3}, DType::kF32);
  const Tensor bf16 = Tensor::zeros({5}, DType::kBF16);
  const std::vector<data::NamedTensor> tensors = {{"a", f32}, {"b.weight", bf16}};
  data::write_safetensors(path, tensors, {{"note", "x"}});
  return {contents_of(path)};
}

void read_safetensors(const std::string& directory, const std::string& input) {
  const auto file = data::SafetensorsFile::open(put(directory, "model.safetensors", input));
  for (const std::string& name : file.names()) (void)file.read(name);
}

std::vector<std::string> hf_configs(const std::string& /*directory*/) {
  std::vector<std::string> texts;
  for (const char* name : {"model_linear_mamba", "model_mlp_tf"}) {
    texts.push_back(
        contents_of(fmt::format("{}/tests/golden/{}/config.json", TTT_SOURCE_DIR, name)));
  }
  return texts;
}

void read_hf_config(const std::string& directory, const std::string& input) {
  put(directory, "config.json", input);
  (void)data::read_hf_config(directory);
}

std::vector<std::string> sentencepiece_models(const std::string& directory) {
  data::SentencePieceTraining training;
  training.vocab_size = 300;
  for (int i = 0; i < 40; ++i) {
    training.texts.push_back(
        fmt::format("the {} quick brown foxes jump over {} lazy dogs and run\n", i, i * 7919));
  }
  const std::string path = directory + "/tokenizer.model";
  data::train_sentencepiece(training, path);
  return {contents_of(path)};
}

void read_sentencepiece(const std::string& directory, const std::string& input) {
  const auto tokenizer = data::open_tokenizer(put(directory, "tokenizer.model", input));
  (void)tokenizer->decode(tokenizer->encode("the quick \xe2\x96\x81 \xf0\x9f\x98\x80 </s>"));
  for (std::int32_t id = 0; id < std::min<std::int64_t>(tokenizer->vocab_size(), 400); ++id) {
    (void)tokenizer->id_to_bytes(id);
  }
}

std::vector<std::string> tokenizer_jsons(const std::string& /*directory*/) {
  return {contents_of(fmt::format("{}/tests/data/tokenizers/gpt2.json", TTT_SOURCE_DIR))};
}

void read_tokenizer_json(const std::string& directory, const std::string& input) {
  const auto tokenizer = data::open_tokenizer(put(directory, "tokenizer.json", input));
  (void)tokenizer->decode(tokenizer->encode("the quick \xe2\x96\x81 \xf0\x9f\x98\x80 </s>"));
}

// ---- Corpora ---------------------------------------------------------------------------------

std::vector<std::string> json_lines(const std::string& /*directory*/) {
  return {
      "{\"text\": \"a \\u0000 \\ud83d\\ude00 </s>\", \"meta\": {\"pile_set_name\": \"Books3\"}}\r\n"
      "{\"meta\": [[[{}]]], \"text\": \"\"}\n",
      "{\"text\": \"caf\xc3\xa9\"}"};
}

void read_corpus(const std::string& path) {
  data::read_documents({path}, data::RecordFields{}, [](data::Document&&) {});
}

void read_json_lines(const std::string& directory, const std::string& input) {
  read_corpus(put(directory, "a.jsonl", input));
}

std::vector<std::string> zstd_streams(const std::string& directory) {
  std::string stream;
  for (const std::string& text : json_lines(directory)) {
    std::string frame(ZSTD_compressBound(text.size()), '\0');
    frame.resize(ZSTD_compress(frame.data(), frame.size(), text.data(), text.size(), 3));
    stream += frame;
  }
  return {stream};
}

void read_zstd(const std::string& directory, const std::string& input) {
  read_corpus(put(directory, "a.jsonl.zst", input));
}

std::vector<std::string> gzip_streams(const std::string& directory) {
  const std::string path = directory + "/a.gz";
  const std::string text = json_lines(directory).front();
  const gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  gzclose(file);
  return {contents_of(path)};
}

void read_gzip(const std::string& directory, const std::string& input) {
  read_corpus(put(directory, "a.jsonl.gz", input));
}

// Two members of POSIX's ustar: 512 bytes of header, then the text in blocks of 512.
std::vector<std::string> tar_archives(const std::string& /*directory*/) {
  std::string archive;
  for (const char* const name : {"books/one.txt", "../two.txt"}) {
    std::string header(512, '\0');
    const auto set = [&](std::size_t at, const std::string& field) {
      header.replace(at, field.size(), field);
    };
    const std::string text = fmt::format("the text of {}", name);
    set(0, name);
    set(100, "0000644");
    set(124, fmt::format("{:011o}", text.size()));
    set(136, "00000000000");
    set(148, "        ");
    set(156, "0");
    set(257, std::string("ustar\00000", 8));
    const int sum = std::accumulate(header.begin(), header.end(), 0);
    set(148, fmt::format("{:06o}", sum));
    archive += header + text + std::string(512 - text.size() % 512, '\0');
  }
  return {archive + std::string(1024, '\0')};
}

void read_tar(const std::string& directory, const std::string& input) {
  read_corpus(put(directory, "a.tar", input));
}

void read_order(const std::string& directory, const std::string& input) {
  const data::OrderFile order(put(directory, "order.txt", input), 7);
  for (std::int64_t i = 0; i < std::min<std::int64_t>(order.num_samples(), 100); ++i) {
    (void)order.window_at(i);
  }
}

std::vector<std::string> parquet_files(const std::string& /*directory*/) {
  return {contents_of(fmt::format("{}/tests/data/parquet/rows.parquet", TTT_SOURCE_DIR))};
}

void read_parquet(const std::string& directory, const std::string& input) {
  read_corpus(put(directory, "a.parquet", input));
}

std::vector<Target> with_parquet_if_built(std::vector<Target> targets) {
  if (data::reads_parquet()) targets.push_back({"parquet", parquet_files, read_parquet});
  return targets;
}

}  // namespace

const std::vector<Target>& targets() {
  static const std::vector<Target> all = {
      {"config", preset_texts, read_config},
      {"override",
       [](const std::string&) {
         return std::vector<std::string>{"optimizer.beta1=0.9", "data.train=a,b",
                                         "model.mixer=TTT_MLP", "train.recompute_blocks=true"};
       },
       read_override},
      {"manifest", manifest_texts, read_manifest},
      {"checkpoint_shard", checkpoint_shards, read_checkpoint_shard},
      {"corpus_manifest", corpus_manifests, read_corpus_manifest},
      {"token_shard", token_shards, read_token_shard},
      {"npy", npy_arrays, read_npy},
      {"megatron", megatron_indices, read_megatron},
      {"safetensors", safetensors_files, read_safetensors},
      {"hf_config", hf_configs, read_hf_config},
      {"sentencepiece", sentencepiece_models, read_sentencepiece},
      {"tokenizer_json", tokenizer_jsons, read_tokenizer_json},
      {"jsonl", json_lines, read_json_lines},
      {"zstd", zstd_streams, read_zstd},
      {"gzip", gzip_streams, read_gzip},
      {"tar", tar_archives, read_tar},
      {"order", [](const std::string&) { return std::vector<std::string>{"0 3 1\n2 6 5 4 0\n"}; },
       read_order}};
  static const std::vector<Target> built = with_parquet_if_built(all);
  return built;
}

bool accepts(const Target& target, const std::string& directory, const std::string& input) {
  try {
    target.read(directory, input);
    return true;
  } catch (const Error& error) {
    const bool blames_input =
        error.code() == ExitCode::kUsage || error.code() == ExitCode::kCorruptInput;
    if (!blames_input || std::string_view(error.what()).empty()) throw;
    return false;
  }
}

}  // namespace ttt::fuzz
