#include "data/tokens/tokenize_pipeline.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace ttt::data {
namespace {

// Large enough that the locks cost nothing, small enough that all threads find work.
constexpr std::size_t kBatchBytes = std::size_t{1} << 18;
constexpr std::size_t kBatchDocuments = 512;
constexpr std::size_t kBatchesPerThread = 4;
// A batch may be one document of 64 MiB: then few are under way.
constexpr std::size_t kMaxBytesUnderWay = std::size_t{1} << 25;

struct Batch {
  std::vector<CorpusItem> items;
  std::vector<std::vector<std::int32_t>> ids;  // [items], when done
  std::size_t num_bytes = 0;
  std::exception_ptr error;
  bool done = false;
};

class Pipeline {
 public:
  Pipeline(const Tokenizer& tokenizer, int num_threads, const TokenizeSteps& steps)
      : tokenizer_(tokenizer),
        steps_(steps),
        max_batches_(kBatchesPerThread * static_cast<std::size_t>(num_threads)) {
    threads_.emplace_back([this] { run_producer(); });
    for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { run_worker(); });
  }

  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;
  ~Pipeline() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  /// The next batch in order; null at the end.
  std::shared_ptr<Batch> next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ordered_.empty() ? produced_all_ : ordered_.front()->done; });
    if (ordered_.empty()) {
      if (produce_error_) std::rethrow_exception(produce_error_);
      return nullptr;
    }
    auto batch = std::move(ordered_.front());
    ordered_.pop_front();
    bytes_under_way_ -= batch->num_bytes;
    lock.unlock();
    changed_.notify_all();
    if (batch->error) std::rethrow_exception(batch->error);
    return batch;
  }

 private:
  void run_producer() {
    std::exception_ptr error;
    try {
      auto batch = std::make_shared<Batch>();
      steps_.produce([&](CorpusItem&& item) {
        batch->num_bytes += item.document.text.size();
        batch->items.push_back(std::move(item));
        if (batch->num_bytes < kBatchBytes && batch->items.size() < kBatchDocuments) return;
        submit(std::exchange(batch, std::make_shared<Batch>()));
      });
      if (!batch->items.empty()) submit(std::move(batch));
    } catch (...) {
      error = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      produced_all_ = true;
      produce_error_ = error;
    }
    changed_.notify_all();
  }

  void submit(std::shared_ptr<Batch> batch) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return stopped_ || ordered_.empty() ||
             (ordered_.size() < max_batches_ &&
              bytes_under_way_ + batch->num_bytes <= kMaxBytesUnderWay);
    });
    // Unwinds the reader; nobody sees this error, because the consumer left with its own.
    if (stopped_) fail(ExitCode::kInternal, "tokenizing was stopped");
    bytes_under_way_ += batch->num_bytes;
    ordered_.push_back(batch);
    waiting_.push_back(std::move(batch));
    lock.unlock();
    changed_.notify_all();
  }

  void run_worker() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopped_ || produced_all_ || !waiting_.empty(); });
      if (stopped_ || waiting_.empty()) return;
      const std::shared_ptr<Batch> batch = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      try {
        for (CorpusItem& item : batch->items) {
          steps_.judge(item);
          batch->ids.emplace_back();
          if (item.left_out.empty()) batch->ids.back() = tokenizer_.encode(item.document.text);
          std::string().swap(item.document.text);
        }
      } catch (...) {
        batch->error = std::current_exception();
      }
      lock.lock();
      batch->done = true;
      changed_.notify_all();
    }
  }

  const Tokenizer& tokenizer_;
  const TokenizeSteps& steps_;
  const std::size_t max_batches_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Batch>> ordered_;  // all batches not consumed yet
  std::deque<std::shared_ptr<Batch>> waiting_;  // those no worker has taken
  std::size_t bytes_under_way_ = 0;
  bool produced_all_ = false;
  bool stopped_ = false;
  std::exception_ptr produce_error_;
  std::vector<std::thread> threads_;
};

}  // namespace

void tokenize_in_order(const Tokenizer& tokenizer, int num_threads, const TokenizeSteps& steps) {
  TTT_CHECK(num_threads >= 1, "{} tokenizing threads", num_threads);
  Pipeline pipeline(tokenizer, num_threads, steps);
  while (const std::shared_ptr<Batch> batch = pipeline.next()) {
    for (std::size_t i = 0; i < batch->ids.size(); ++i) {
      steps.consume(batch->items[i], batch->ids[i]);
    }
  }
}

}  // namespace ttt::data
