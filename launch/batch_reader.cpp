#include "launch/batch_reader.h"

namespace ttt::launch {
namespace {

data::TokenArray open_tokens(const config::RunConfig& config, data::Split split) {
  const auto& paths =
      split == data::Split::kTrain ? config.data().train() : config.data().validation();
  if (paths.empty()) {
    fail(ExitCode::kUsage, "data.{} names no token files; `ttt prepare` makes them from text",
         name_of(split));
  }
  data::TokenArray tokens = data::TokenArray::open({paths.begin(), paths.end()}, split);
  const std::int64_t vocab = config.model().vocab_size();
  if (tokens.vocab_size() > vocab) {
    fail(ExitCode::kCorruptInput,
         "{} has a vocabulary of {} tokens, more than model.vocab_size = {}", tokens.describe(),
         tokens.vocab_size(), vocab);
  }
  // Files without a stated vocabulary (.npy) have to be read to be trusted.
  if (tokens.vocab_size() == 0) tokens.verify(vocab);
  return tokens;
}

}  // namespace

BatchReader::BatchReader(const config::RunConfig& config, data::Split split,
                         const SequenceExchange* sequence)
    : tokens_(open_tokens(config, split)),
      sampler_(tokens_.num_tokens(), config.data().context_length(),
               // Validation is the first windows of the file, whatever the training order.
               split == data::Split::kTrain && config.data().order() == config::DataConfig::PERMUTED
                   ? data::Order::kPermuted
                   : data::Order::kSequential,
               config.seed(), tokens_.describe()),
      masked_target_(config.data().masked_target()),
      begin_(sequence != nullptr ? sequence->begin() : 0),
      end_(sequence != nullptr ? sequence->end() : config.data().context_length()) {}

BatchReader::Buffers BatchReader::make_buffers(std::int64_t rows) const {
  const Shape shape{rows, end_ - begin_};
  return {Tensor(shape, DType::kI64), Tensor(shape, DType::kI64), Tensor(shape, DType::kF64),
          Tensor(shape, DType::kF64)};
}

void BatchReader::read(std::int64_t position, std::int64_t global_rows,
                       const Buffers& buffers) const {
  const Shape whole{context_length()};
  const Buffers window{Tensor(whole, DType::kI64), Tensor(whole, DType::kI64),
                       Tensor(whole, DType::kF64), Tensor(whole, DType::kF64)};
  for (std::int64_t row = 0; row < buffers.ids.size(0); ++row) {
    data::read_window(tokens_, sampler_.window_at(position + row), masked_target_,
                      window.ids.span<std::int64_t>(), window.targets.span<std::int64_t>(),
                      window.mask.span<double>());
    set_row_weights(window.mask.span<double>(), global_rows, window.weight.span<double>());
    const auto take = [&](const Tensor& from, const Tensor& to) {
      copy(from.view().slice(begin_, end_), to.view().slice(row, row + 1).reshape({end_ - begin_}));
    };
    take(window.ids, buffers.ids);
    take(window.targets, buffers.targets);
    take(window.mask, buffers.mask);
    take(window.weight, buffers.weight);
  }
}

}  // namespace ttt::launch
