#pragma once
// Saves a run while it goes on: each rank copies its part of the state, and a thread of its own writes, syncs and digests
// the copy. Between steps the ranks ask one another who is done; once all files are durable rank 0's thread commits.
//
// The threads never communicate: the agreement is the computing threads', who meet after every step anyway, so that MPI
// needs to bear no second thread. At most one save is in flight, and one copy exists, taken at the start.
//
// Errors: a save in which a rank cannot write its shard is given up on every rank, with a warning: what is on the disk of it
//   goes, the older checkpoints stay, and the run goes on. kIo, naming the rank, when that happens three times in a row or to
//   the last save; of the commit at once, on rank 0, whose main must end the others.

#include <functional>
#include <string>
#include <vector>

#include "configs/run.pb.h"
#include "core/base/stream.h"
#include "core/base/timer.h"
#include "data/checkpoint/checkpoint.h"
#include "dist/communicator.h"
#include "dist/job_thread.h"

namespace ttt::launch {

class CheckpointSaver {
 public:
  struct Options {
    std::string run_directory;
    std::int64_t keep_last = 2;
    // Else `begin` returns when the checkpoint is committed, and nothing is copied.
    bool asynchronous = false;
    std::string tokenizer;  // a file that is copied into every checkpoint; may be empty
    std::function<void()> before_commit = [] {};  // on rank 0's thread
  };

  /// `live` are the run's own buffers, which outlive this; over all ranks the `owned` ranges are all, each once.
  CheckpointSaver(Options options, const data::FlatState& live, std::vector<FlatRange> owned,
                  dist::Communicator& communicator);
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;
  /// Ends the thread: a file that is being written is finished, nothing is committed any more.
  ~CheckpointSaver() = default;

  /// Saves the state that the stream's queue will have computed: RUN/checkpoints/step-N, N the manifest's, which says what
  /// the state itself does not. Waits for the save before, if there is one. Collective.
  void begin(const config::CheckpointManifest& run, Stream& stream);
  /// To be called after every step: moves on what is in flight, without waiting for any thread. Collective.
  void poll();
  /// Returns when everything begun is committed or given up. Collective.
  void wait();
  /// The same; throws if the last save was given up. Collective.
  void finish();

 private:
  /// What the thread is given and gives back; the computing thread reads it once the job is done.
  struct Save {
    config::CheckpointManifest manifest;
    std::string directory;  // temporary
    std::string answer;     // the shard's digest as text; "!" starts an error
    Timer clock;
    double copy_seconds = 0;
  };

  void copy_state(Stream& stream);
  void write();
  /// Every rank's answers are there.
  void agree();
  void give_up(const std::string& failure);
  void commit(const Save& save);
  void wait_for_commit();

  Options options_;
  data::FlatState live_;
  std::vector<FlatRange> owned_;
  dist::Communicator& communicator_;
  // The copy: the owned ranges, one after the other; empty unless asynchronous.
  Tensor values_, m_, v_;
  data::FlatState source_;  // what is written: the copy, or `live_`
  Save save_;
  bool is_writing_ = false;  // from `begin` to the agreement; the same on every rank
  std::int64_t num_jobs_ = 0;
  std::string failure_;     // of the last save; the same on every rank
  int num_failures_ = 0;    // in a row
  dist::JobThread thread_;  // last: it uses the others
};

}  // namespace ttt::launch
