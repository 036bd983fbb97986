#include "launch/evaluation.h"

#include <algorithm>
#include <limits>

#include "core/token_range.h"
#include "launch/stop_signal.h"

namespace ttt::launch {
namespace {

// Groups handled before results are shared; a multiple of the ranks keeps them all busy.
constexpr std::int64_t kGroupsPerRank = 4;

class InnerLossSums final : public InnerLossRecorder {
 public:
  InnerLossSums(InnerLosses& result, std::int64_t begin) : result_(result), begin_(begin) {}

  void record(std::int64_t layer, TensorView losses) override {
    const std::int64_t batch = losses.size(1);
    const std::int64_t length = losses.size(2);
    const std::int64_t heads = losses.size(3);
    const double* value = losses.data<double>();
    for (std::int64_t kind = 0; kind < 3; ++kind) {
      for (std::int64_t b = 0; b < batch; ++b) {
        for (std::int64_t t = 0; t < length; ++t) {
          double sum = 0;
          for (std::int64_t h = 0; h < heads; ++h) sum += *value++;
          const std::int64_t at = (kind * result_.num_layers + layer) * result_.length + begin_ + t;
          result_.sums[static_cast<std::size_t>(at)] += sum / static_cast<double>(heads);
        }
      }
    }
  }

 private:
  InnerLosses& result_;
  std::int64_t begin_;
};

// What a rank has of rows [first_row, ...) of the shared `to`: `from` holds their tokens from first_token on.
void put_range(const SequenceRange& range, const Tensor& from, std::int64_t first_row,
               std::int64_t first_token, const TensorView& to) {
  for (std::int64_t row = range.row_begin; row < range.row_end; ++row) {
    copy(sequence_tokens(from, row, range.begin, range.end),
         sequence_tokens(to, first_row + row, first_token + range.begin, first_token + range.end));
  }
}

}  // namespace

bool visit_window_losses(
    const LanguageModel& model, const BatchReader& reader, std::int64_t num_windows,
    std::int64_t micro_batch, const dist::ProcessGrid& grid, Context& context,
    const std::function<void(std::span<const double> nll, std::span<const double> mask)>& visit) {
  TTT_CHECK(num_windows <= reader.num_windows(), "{} windows of {}", num_windows,
            reader.num_windows());
  const std::int64_t at_once = micro_batch * grid.data().size() * kGroupsPerRank;
  const std::int64_t length = reader.context_length();
  for (std::int64_t first = 0; first < num_windows; first += at_once) {
    const std::int64_t count = std::min(at_once, num_windows - first);
    const std::int64_t numbers = count * length;
    const Tensor shared = Tensor::zeros({2 * numbers + 1}, DType::kF64);
    const TensorView nll = shared.view().slice(0, numbers).reshape({count, length});
    const TensorView mask = shared.view().slice(numbers, 2 * numbers).reshape({count, length});
    double& num_stopping = shared.data<double>()[2 * numbers];
    for (std::int64_t begin = 0; begin < count; begin += micro_batch) {
      if (begin / micro_batch % grid.data().size() != grid.data().rank()) continue;
      const std::int64_t rows = std::min(micro_batch, count - begin);
      const BatchReader::Buffers buffers = reader.make_buffers(rows);
      reader.read(first + begin, rows, buffers);
      const Tensor read_nll(buffers.ids.shape(), DType::kF64);
      const std::vector<SequenceRange> sequences = reader.sequences(buffers.ids);
      for (const SequenceRange& range : sequences) {
        SequenceContext of_sequence(context, range);
        model.evaluate(buffers.batch(range), range.of(read_nll), of_sequence.get());
      }
      context.stream.synchronize();
      grid.world().mark_progress();
      for (const SequenceRange& range : sequences) {
        put_range(range, read_nll, begin, reader.segment_begin(), nll);
        put_range(range, buffers.mask, begin, reader.segment_begin(), mask);
      }
    }
    num_stopping = stop_requested() ? 1 : 0;
    grid.world().all_reduce_sum(shared, context.stream);
    context.stream.synchronize();
    for (std::int64_t row = 0; row < count; ++row) {
      visit(nll.slice(row, row + 1).span<double>(), mask.slice(row, row + 1).span<double>());
    }
    if (num_stopping > 0 && first + count < num_windows) return false;
  }
  return true;
}

std::optional<double> validation_loss(const LanguageModel& model, const BatchReader& reader,
                                      std::int64_t num_windows, std::int64_t micro_batch,
                                      const dist::ProcessGrid& grid, Context& context) {
  PositionLosses losses;
  const bool is_whole = visit_window_losses(model, reader, num_windows, micro_batch, grid, context,
                                            [&](auto nll, auto mask) { losses.add(nll, mask); });
  return is_whole ? std::optional(losses.loss()) : std::nullopt;
}

void PositionLosses::add(std::span<const double> nll, std::span<const double> mask) {
  nll_sum.resize(nll.size());
  count.resize(nll.size());
  double sum = 0;
  double tokens = 0;
  for (std::size_t t = 0; t < nll.size(); ++t) {
    if (mask[t] == 0) continue;
    nll_sum[t] += mask[t] * nll[t];
    count[t] += mask[t];
    sum += mask[t] * nll[t];
    tokens += mask[t];
  }
  row_mean_sum += sum / std::max(tokens, 1e-10);
  ++num_windows;
}

double PositionLosses::loss() const {
  return row_mean_sum / static_cast<double>(std::max<std::int64_t>(1, num_windows));
}

double PositionLosses::mean(std::int64_t begin, std::int64_t end) const {
  double sum = 0;
  double tokens = 0;
  for (auto t = static_cast<std::size_t>(begin); t < static_cast<std::size_t>(end); ++t) {
    sum += nll_sum[t];
    tokens += count[t];
  }
  return tokens > 0 ? sum / tokens : std::numeric_limits<double>::quiet_NaN();
}

double InnerLosses::mean(int kind, std::int64_t layer, std::int64_t position) const {
  return sums[static_cast<std::size_t>((kind * num_layers + layer) * length + position)] /
         static_cast<double>(num_windows);
}

InnerLosses inner_losses(const LanguageModel& model, const BatchReader& reader,
                         std::int64_t num_windows, dist::Communicator& sequence, Context& context) {
  InnerLosses result;
  const config::Mixer mixer = model.config().mixer();
  if (mixer != config::TTT_LINEAR && mixer != config::TTT_MLP) return result;
  const BatchReader::Buffers buffers = reader.make_buffers(1);
  result.num_layers = model.config().num_layers();
  result.length = reader.context_length();
  result.num_windows = num_windows;
  result.sums.resize(static_cast<std::size_t>(3 * result.num_layers * result.length));
  Context recording = context;
  const Tensor nll(buffers.ids.shape(), DType::kF64);
  for (std::int64_t window = 0; window < num_windows; ++window) {
    reader.read(window, 1, buffers);
    stop_if_requested("evaluation");
    for (const SequenceRange& range : reader.sequences(buffers.ids)) {
      InnerLossSums recorder(result, reader.segment_begin() + range.begin);
      recording.inner_losses = &recorder;
      SequenceContext of_sequence(recording, range);
      model.evaluate(buffers.batch(range), range.of(nll), of_sequence.get());
      context.stream.synchronize();
    }
    sequence.mark_progress();
  }
  if (sequence.size() == 1) return result;
  const Tensor sums({std::ssize(result.sums)}, DType::kF64);  // where any communicator reaches it
  std::ranges::copy(result.sums, sums.data<double>());
  sequence.all_reduce_sum(sums, context.stream);  // every position comes from one rank: exact
  context.stream.synchronize();
  std::ranges::copy(sums.span<double>(), result.sums.begin());
  return result;
}

}  // namespace ttt::launch
