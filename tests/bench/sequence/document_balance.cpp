// How evenly documents are shared by the ranks that hold windows together, docs/parallelism.md, "Documents": tokens of the
// rank that runs most, over a rank's part of the window, in the windows of a prepared corpus.
//
//   ttt_document_balance TOKENS CONTEXT_LENGTH [rows of a micro-batch]

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "launch/batch_reader.h"

namespace ttt::bench {
namespace {

void print_balance(config::RunConfig config, std::int64_t rows, std::int64_t ranks) {
  const launch::BatchReader reader(config, data::Split::kTrain);
  const launch::BatchReader::Buffers buffers = reader.make_buffers(rows);
  config.mutable_parallel()->set_sequence_ranks(ranks);
  const launch::DocumentSharing sharing = launch::document_sharing(config);
  const std::int64_t micro_batches = reader.num_windows() / rows;
  double sum = 0;
  double worst = 0;
  double whole = 0;
  double documents = 0;
  for (std::int64_t i = 0; i < micro_batches; ++i) {
    reader.read(i * rows, rows, buffers);
    const auto all = launch::documents_of(buffers.ids, config.data().masked_target());
    std::int64_t most = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      std::int64_t tokens = 0;
      for (const launch::SequenceRange& range : launch::share_of_rank(all, sharing, rank)) {
        tokens += range.tokens();
        if (range.bounds.empty()) whole += static_cast<double>(range.tokens());
      }
      most = std::max(most, tokens);
    }
    const double busiest =
        static_cast<double>(most * ranks) / static_cast<double>(buffers.ids.numel());
    sum += busiest;
    worst = std::max(worst, busiest);
    documents += static_cast<double>(all.size());
  }
  const auto count = static_cast<double>(micro_batches);
  std::printf(
      "%lld ranks: busiest %.4f of the mean (worst micro-batch %.3f), %.1f documents a "
      "micro-batch, %.0f %% of the tokens in whole ones\n",
      static_cast<long long>(ranks), sum / count, worst, documents / count,
      100 * whole / count / static_cast<double>(buffers.ids.numel()));
}

}  // namespace
}  // namespace ttt::bench

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "ttt_document_balance TOKENS CONTEXT_LENGTH [rows of a micro-batch]\n");
    return 64;
  }
  ttt::config::RunConfig config;
  config.mutable_data()->add_train(argv[1]);
  config.mutable_data()->set_context_length(std::atoll(argv[2]));
  config.mutable_data()->set_order(ttt::config::DataConfig::SEQUENTIAL);
  config.mutable_data()->set_reset_at_bos(true);
  const std::int64_t rows = argc > 3 ? std::atoll(argv[3]) : 1;
  for (const std::int64_t ranks : {2, 4, 8}) ttt::bench::print_balance(config, rows, ranks);
  return 0;
}
