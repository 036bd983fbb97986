#include "dist/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/dist/backend.h"

namespace ttt::dist {
namespace {

using testing::HasSubstr;

constexpr std::array kAllDTypes = {DType::kF64, DType::kF32, DType::kBF16, DType::kI64,
                                   DType::kI32, DType::kU16, DType::kU8};

/// A view [dims...] over bytes that depend on the rank, a name and the place.
struct Buffer {
  Buffer(const Shape& shape, DType dtype) : tensor(Tensor::zeros(shape, dtype)) {}

  void write_pattern(int rank, int name) {
    auto* bytes = static_cast<std::uint8_t*>(tensor.view().raw());
    for (std::int64_t i = 0; i < tensor.view().num_bytes(); ++i) {
      bytes[i] = pattern(rank, name, i);
    }
  }
  static std::uint8_t pattern(int rank, int name, std::int64_t i) {
    return static_cast<std::uint8_t>(rank * 31 + name * 7 + i * 3 + 1);
  }
  /// Bytes [begin, end) equal those that `rank` wrote at `source` on.
  void expect_pattern(int rank, int name, std::int64_t begin, std::int64_t end,
                      std::int64_t source) const {
    const auto* bytes = static_cast<const std::uint8_t*>(tensor.view().raw());
    for (std::int64_t i = begin; i < end; ++i) {
      ASSERT_EQ(bytes[i], pattern(rank, name, source + i - begin)) << "byte " << i;
    }
  }

  Tensor tensor;
};

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kInternal);
    return error.what();
  }
  return "no error";
}

/// The world in one message each, and cut to messages of three elements.
class Collectives : public testing::TestWithParam<std::int64_t> {
 protected:
#ifdef TTT_TEST_NCCL
  Collectives() : communicator_(test::make_backend(0)), stream_(test::make_backend_stream()) {}
#else
  Collectives() : communicator_(make_mpi_communicator(GetParam())) {}
#endif

  Communicator& world() { return *communicator_; }
  [[nodiscard]] int rank() const { return communicator_->rank(); }
  [[nodiscard]] int size() const { return communicator_->size(); }

  std::unique_ptr<Communicator> communicator_;
  Stream stream_;
};

#ifdef TTT_TEST_NCCL
INSTANTIATE_TEST_SUITE_P(Nccl, Collectives, testing::Values(2147483647));
#else
INSTANTIATE_TEST_SUITE_P(Messages, Collectives, testing::Values(2147483647, 3), [](const auto& p) {
  return p.param == 3 ? "CutToThreeElements" : "Whole";
});
#endif

constexpr std::array<std::int64_t, 5> kCounts = {0, 1, 3, 7, 1001};

template <typename T>
void expect_sums(Communicator& world, Stream& stream) {
  const int size = world.size();
  for (const std::int64_t count : kCounts) {
    const Tensor inout({count}, kDType<T>);
    const Tensor in({size, count}, kDType<T>);
    const Tensor out({count}, kDType<T>);
    for (std::int64_t i = 0; i < count; ++i) {
      inout.data<T>()[i] = static_cast<T>((world.rank() + 1) * (i + 1));
    }
    for (std::int64_t i = 0; i < in.numel(); ++i) {
      in.data<T>()[i] = static_cast<T>((world.rank() + 1) * (i + 1));
    }
    world.all_reduce_sum(inout, stream);
    world.reduce_scatter_sum(in, out, stream);
    stream.synchronize();
    const std::int64_t ranks = size * (size + 1) / 2;
    for (std::int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(inout.data<T>()[i], static_cast<T>(ranks * (i + 1)));
      ASSERT_EQ(out.data<T>()[i], static_cast<T>(ranks * (world.rank() * count + i + 1)));
    }
  }
}

TEST_P(Collectives, SumsAreExactOnSmallIntegers) {
  expect_sums<double>(world(), stream_);
  expect_sums<float>(world(), stream_);
  expect_sums<std::int64_t>(world(), stream_);
}

TEST_P(Collectives, AllReduceGivesAllRanksTheSameBits) {
  const Tensor values({1001}, DType::kF32);
  for (int i = 0; i < 1001; ++i) {
    values.data<float>()[i] = std::sin(static_cast<float>(i * (rank() + 3))) * 1e3F;
  }
  world().all_reduce_sum(values, stream_);
  stream_.synchronize();
  const std::string mine(static_cast<const char*>(values.view().raw()), 4004);
  for (const std::string& bits : world().gather_strings(mine)) {
    EXPECT_EQ(bits, mine);
  }
}

TEST_P(Collectives, ReduceScatterReachesBeyondOneBuffer) {
  const std::int64_t count = (std::int64_t{1} << 20U) + 5;
  if (GetParam() == 3) {
    return;  // millions of tiny messages would show nothing more
  }
  const Tensor in({size(), count}, DType::kF32);
  fill(in, rank() + 1.0);
  const Tensor out({count}, DType::kF32);
  world().reduce_scatter_sum(in, out, stream_);
  stream_.synchronize();
  for (const float value : out.span<float>()) {
    ASSERT_EQ(value, static_cast<float>(size() * (size() + 1) / 2));
  }
}

TEST_P(Collectives, AllGatherStacksInRankOrder) {
  for (const DType dtype : kAllDTypes) {
    for (const std::int64_t count : kCounts) {
      Buffer in({count}, dtype);
      in.write_pattern(rank(), 1);
      const Buffer out({size(), count}, dtype);
      world().all_gather(in.tensor, out.tensor, stream_);
      stream_.synchronize();
      const std::int64_t bytes = count * size_of(dtype);
      for (int r = 0; r < size(); ++r) {
        out.expect_pattern(r, 1, r * bytes, (r + 1) * bytes, 0);
      }
    }
  }
}

TEST_P(Collectives, AllToAllTransposes) {
  for (const DType dtype : kAllDTypes) {
    for (const std::int64_t count : kCounts) {
      Buffer in({size(), count}, dtype);
      in.write_pattern(rank(), 2);
      const Buffer out({size(), count}, dtype);
      world().all_to_all(in.tensor, out.tensor, stream_);
      stream_.synchronize();
      const std::int64_t bytes = count * size_of(dtype);
      for (int r = 0; r < size(); ++r) {
        out.expect_pattern(r, 2, r * bytes, (r + 1) * bytes, rank() * bytes);
      }
    }
  }
}

TEST_P(Collectives, BroadcastFromEveryRoot) {
  for (const DType dtype : kAllDTypes) {
    for (const std::int64_t count : kCounts) {
      for (int root = 0; root < size(); ++root) {
        Buffer buffer({count}, dtype);
        buffer.write_pattern(rank(), 3);
        world().broadcast(buffer.tensor, root, stream_);
        stream_.synchronize();
        buffer.expect_pattern(root, 3, 0, count * size_of(dtype), 0);
      }
    }
  }
}

TEST_P(Collectives, SendAndRecvAroundTheRing) {
  for (const DType dtype : kAllDTypes) {
    for (const std::int64_t count : kCounts) {
      Buffer buffer({count}, dtype);
      buffer.write_pattern(rank(), 4);
      // Rank r hands to r + 1, the last to nobody: one wave, no cycle.
      const Buffer received({count}, dtype);
      if (rank() > 0) {
        world().recv(received.tensor, rank() - 1, stream_);
        stream_.synchronize();
        received.expect_pattern(rank() - 1, 4, 0, count * size_of(dtype), 0);
      }
      if (rank() + 1 < size()) {
        world().send(buffer.tensor, rank() + 1, stream_);
        stream_.synchronize();
      }
    }
  }
}

TEST_P(Collectives, ExchangeSwapsUnequalCounts) {
  const int peer = rank() ^ 1;
  if (peer >= size()) {
    return;  // the last of an odd number of ranks has no partner
  }
  for (const DType dtype : kAllDTypes) {
    for (const std::int64_t count : kCounts) {
      const auto count_of = [&](int r) { return r % 2 == 0 ? count : 2 * count + 1; };
      Buffer out({count_of(rank())}, dtype);
      out.write_pattern(rank(), 5);
      const Buffer in({count_of(peer)}, dtype);
      world().exchange(out.tensor, in.tensor, peer, stream_);
      stream_.synchronize();
      in.expect_pattern(peer, 5, 0, count_of(peer) * size_of(dtype), 0);
    }
  }
}

TEST_P(Collectives, GatherStringsKeepsLengthsAndBytes) {
  const std::string mine = std::string(static_cast<std::size_t>(rank()), 'x') + '\0' + "end";
  const auto all = world().gather_strings(mine);
  ASSERT_EQ(all.size(), static_cast<std::size_t>(size()));
  for (int r = 0; r < size(); ++r) {
    EXPECT_EQ(all[static_cast<std::size_t>(r)],
              std::string(static_cast<std::size_t>(r), 'x') + '\0' + "end");
  }
  for (const auto& text : world().gather_strings("")) {
    EXPECT_EQ(text, "");
  }
}

TEST_P(Collectives, LocalRanksAreAllOnThisMachine) {
  world().barrier();
  EXPECT_EQ(world().local_size(), size());
  EXPECT_EQ(world().local_rank(), rank());
}

TEST_P(Collectives, TrafficCountsWhatGoesToOthers) {
  const Tensor part({5}, DType::kF32);
  const Tensor all({size(), 5}, DType::kF32);
  fill(part, 1);
  world().all_gather(part, all, stream_);
  stream_.synchronize();
  EXPECT_EQ(world().traffic().of(Traffic::kGather).num_calls, 1);
  EXPECT_EQ(world().traffic().of(Traffic::kGather).bytes_sent, 20 * (size() - 1));
  const int peer = rank() ^ 1;
  if (peer >= size()) return;  // the last of an odd number of ranks has no partner
  const Tensor other({5}, DType::kF32);
  world().exchange(part, other, peer, stream_);
  stream_.synchronize();
  EXPECT_EQ(world().traffic().of(Traffic::kMessage).bytes_received, 20);
  EXPECT_EQ(world().traffic().total().bytes_sent, 20 * size());
}

TEST_P(Collectives, WrongShapesAndDtypesAreNamed) {
  const Tensor three({3}, DType::kF32);
  const Tensor stack({size(), 4}, DType::kF32);
  const Tensor wide({size(), 3}, DType::kF64);
  const Tensor bytes({3}, DType::kU8);
  const std::string mismatch = fmt::format("has shape [{}, 4], expected [{}, 3]", size(), size());
  EXPECT_THAT(message_of([&] { world().all_gather(three, stack, stream_); }),
              HasSubstr("out " + mismatch));
  EXPECT_THAT(message_of([&] { world().reduce_scatter_sum(stack, three, stream_); }),
              HasSubstr("in " + mismatch));
  EXPECT_THAT(message_of([&] { world().all_gather(three, wide, stream_); }),
              HasSubstr("in is F32, but out is F64"));
  EXPECT_THAT(message_of([&] { world().all_reduce_sum(bytes, stream_); }),
              HasSubstr("sums are of F64, F32 or I64, not U8"));
  const Tensor uneven({size() + 1, 3}, DType::kF32);
  EXPECT_THAT(message_of([&] { world().all_to_all(uneven, uneven, stream_); }),
              HasSubstr(fmt::format("its first dimension must be the {} ranks", size())));
  EXPECT_THAT(message_of([&] { world().broadcast(three, size(), stream_); }),
              HasSubstr(fmt::format("root {0} among {0} ranks", size())));
  EXPECT_THAT(message_of([&] { world().send(three, rank(), stream_); }),
              HasSubstr(fmt::format("peer {0} of rank {0}", rank())));
}

#ifndef TTT_TEST_NCCL  // which does not tell the receiver
TEST_P(Collectives, ReceiversNameTheSizeTheyExpect) {
  const Tensor two({2}, DType::kF32);
  const Tensor one({1}, DType::kF32);
  if (rank() == 0 && size() > 1) {
    world().send(two, 1, stream_);
    world().exchange(one, two, 1, stream_);
  }
  if (rank() == 1) {
    EXPECT_THAT(message_of([&] { world().recv(one, 0, stream_); }),
                HasSubstr("rank 0 sent 2 elements, 1 of F32 were expected"));
    world().recv(two, 0, stream_);  // still there
    EXPECT_THAT(message_of([&] { world().exchange(two, two, 0, stream_); }),
                HasSubstr("rank 0 sent 1 elements, 2 of F32 were expected"));
  }
}

#endif

TEST(SingleCommunicator, IsTheIdentity) {
  const auto single = make_single_communicator();
  Stream stream;
  EXPECT_EQ(single->rank(), 0);
  EXPECT_EQ(single->size(), 1);
  EXPECT_EQ(single->local_rank(), 0);
  EXPECT_EQ(single->local_size(), 1);
  for (const std::int64_t count : kCounts) {
    Buffer part({count}, DType::kF64);
    part.write_pattern(0, 6);
    const Buffer gathered({1, count}, DType::kF64);
    const Buffer exchanged({1, count}, DType::kF64);
    const Buffer scattered({count}, DType::kF64);
    single->all_gather(part.tensor, gathered.tensor, stream);
    single->all_to_all(gathered.tensor, exchanged.tensor, stream);
    single->reduce_scatter_sum(exchanged.tensor, scattered.tensor, stream);
    single->all_reduce_sum(scattered.tensor, stream);
    single->broadcast(scattered.tensor, 0, stream);
    scattered.expect_pattern(0, 6, 0, count * 8, 0);
  }
  single->barrier();
  EXPECT_EQ(single->gather_strings("a"), std::vector<std::string>{"a"});
  const Tensor two({2}, DType::kF32);
  EXPECT_THAT(message_of([&] { single->recv(two, 0, stream); }), HasSubstr("peer 0 of rank 0"));
}

TEST(World, IsTheLaunchersWorld) {
  const auto ranks = test::world().gather_strings(std::to_string(test::world().rank()));
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    EXPECT_EQ(ranks[r], std::to_string(r));
  }
}

}  // namespace
}  // namespace ttt::dist
