#pragma once
// What a layer needs of the ranks that hold the other segments of its sequences.
//
// Rank r of S holds tokens [bounds[r], bounds[r+1]) of every sequence. What looks at one token at a time needs nothing
// else. A convolution needs the last inputs of the segment before (`exchange_halo`), a core one of two things:
//   state passing   the state that the segment before left, and in backward the gradient of the one it leaves;
//   head exchange   all tokens of H / S heads (`tokens_to_heads`), its outputs back as all heads of its tokens.
//
// Dims: B batch, T tokens of a whole sequence, L tokens of this rank's segment, C channels, head by head.
// Numerics: elements are moved, never added, except that return_halo adds two gradients.
// Errors: kInternal when shapes do not fit; kPeerLost when the transport fails.
// Source: arXiv:2309.14509 (DeepSpeed-Ulysses) for head exchange; docs/parallelism.md for the rest.

#include <cstdint>
#include <deque>
#include <vector>

#include "configs/run.pb.h"
#include "core/base/flat_range.h"
#include "core/base/stream.h"
#include "core/base/tensor.h"
#include "core/context.h"

namespace ttt {

enum class SequenceForm { kStatePassing, kHeadExchange };
enum class Neighbour { kPrevious, kNext };

struct SequenceSplit {
  SequenceForm form = SequenceForm::kStatePassing;
  std::vector<std::int64_t> bounds;  // S + 1 positions
};
/// What data.context_length and parallel.* of a checked configuration say.
SequenceSplit sequence_split(const config::RunConfig& config);

/// The transport, which `dist` implements, and who holds what. Calls are made in the same order on every rank.
class SequenceExchange {
 public:
  SequenceExchange(SequenceSplit split, int rank);
  SequenceExchange(const SequenceExchange&) = delete;
  SequenceExchange& operator=(const SequenceExchange&) = delete;
  virtual ~SequenceExchange() = default;

  [[nodiscard]] const SequenceSplit& split() const { return split_; }
  [[nodiscard]] SequenceForm form() const { return split_.form; }
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return static_cast<int>(split_.bounds.size()) - 1; }
  [[nodiscard]] bool is_first() const { return rank_ == 0; }
  [[nodiscard]] bool is_last() const { return rank_ == size() - 1; }
  [[nodiscard]] const std::vector<std::int64_t>& bounds() const { return split_.bounds; }
  [[nodiscard]] std::int64_t begin() const { return bounds()[static_cast<std::size_t>(rank_)]; }
  [[nodiscard]] std::int64_t end() const { return bounds()[static_cast<std::size_t>(rank_) + 1]; }

  /// Returns at once: ranks drift apart, each waiting only for what it needs (the wavefront).
  virtual void send(TensorView view, Neighbour to, Stream& stream) = 0;
  virtual void receive(TensorView view, Neighbour from, Stream& stream) = 0;
  /// in, out: [S, n...]; out[r] is rank r's in[rank()].
  virtual void all_to_all(TensorView in, TensorView out, Stream& stream) = 0;

 private:
  SequenceSplit split_;
  int rank_;
};

/// Another one's transport for sequences that are cut elsewhere, as a document of a window is. `exchange` must outlive it.
class ResplitExchange final : public SequenceExchange {
 public:
  /// `bounds`: of as many segments.
  ResplitExchange(SequenceExchange& exchange, std::vector<std::int64_t> bounds);

  void send(TensorView view, Neighbour to, Stream& stream) override;
  void receive(TensorView view, Neighbour from, Stream& stream) override;
  void all_to_all(TensorView in, TensorView out, Stream& stream) override;

 private:
  SequenceExchange& exchange_;
};

/// For a forward that runs twice (recomputation): keeps what the first run received from the rank before; the second,
/// after `replay`, is given that again and sends nothing. So no rank waits for another's second forward. Head exchange
/// happens again: what it moves is what recomputation does not keep.
class ReplayedExchange final : public SequenceExchange {
 public:
  explicit ReplayedExchange(SequenceExchange& exchange);

  void replay() { replays_ = true; }
  void send(TensorView view, Neighbour to, Stream& stream) override;
  void receive(TensorView view, Neighbour from, Stream& stream) override;
  void all_to_all(TensorView in, TensorView out, Stream& stream) override;

 private:
  SequenceExchange& exchange_;
  std::deque<Tensor> received_;
  bool replays_ = false;
};

/// Whether this context splits sequences in that form.
bool uses(const Context& context, SequenceForm form);
/// With state passing, whether a segment comes before this rank's, and whether one comes after it.
bool receives_state(const Context& context);
bool sends_state(const Context& context);

/// Of a batch whose core has `heads` heads, the rows that run between receiving their states and sending them on, each
/// group with one message: all rows without state passing; else as few as fill the device, so that the next rank need not
/// wait for the others.
std::vector<FlatRange> state_groups(std::int64_t batch, std::int64_t heads, const Context& context);
/// The number of rows in each of those groups but the last, with state passing.
std::int64_t rows_of_state_group(std::int64_t batch, std::int64_t heads, Device device);

/// The last `rows` tokens before this rank's segment, [B, rows, C], out of every rank's x [B, L, C]; empty on the
/// first rank, without a split and for no rows.
Tensor exchange_halo(TensorView x, std::int64_t rows, Context& context);
/// Its way back: `d_halo` (empty where exchange_halo gave none) goes to the rank before, and what comes from the rank
/// behind is added to the last `rows` tokens of d_x [B, L, C].
void return_halo(TensorView d_halo, std::int64_t rows, TensorView d_x, Context& context);

/// x [B, L, C] of each rank -> [B, T, C/S], this rank's channels of all tokens. Without head exchange x itself.
Tensor tokens_to_heads(const Tensor& x, Context& context);
/// The inverse: y [B, T, C/S] of each rank -> [B, L, C]. Without head exchange y itself.
Tensor heads_to_tokens(const Tensor& y, Context& context);

/// Of `count` channels or heads, those whose tokens are here as one view's leading dimension: all of them, or with head
/// exchange this rank's share.
TensorView own_heads(TensorView parameter, Context& context);

}  // namespace ttt
