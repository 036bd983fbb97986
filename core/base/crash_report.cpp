#include "core/base/crash_report.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <string_view>

#include "core/base/error.h"

namespace ttt::crash {

// A handler may interrupt any instruction: mappings are linked when complete and never freed, only used again.
struct Mapping {
  std::atomic<const std::byte*> base = nullptr;  // null: free to be used again
  std::size_t size = 0;
  std::array<char, 4096> path{};
  Mapping* next = nullptr;
};

namespace {

constexpr std::array kSignals = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};

std::array<char, 512> who{};
std::atomic<std::int64_t> current_step = -1;
std::atomic<Mapping*> mappings = nullptr;
std::mutex mappings_mutex;
std::array<struct sigaction, NSIG> earlier{};  // by signal: what was installed before

const char* name_of_signal(int signal) {
  switch (signal) {
    case SIGSEGV:
      return "SIGSEGV";
    case SIGBUS:
      return "SIGBUS";
    case SIGFPE:
      return "SIGFPE";
    case SIGILL:
      return "SIGILL";
    default:
      return "SIGABRT";
  }
}

// Neither malloc nor printf is safe here.
class Line {
 public:
  Line& operator<<(std::string_view text) {
    const std::size_t room = bytes_.size() - length_;
    const std::size_t count = std::min(room, text.size());
    std::memcpy(bytes_.data() + length_, text.data(), count);
    length_ += count;
    return *this;
  }
  Line& operator<<(std::int64_t number) {
    std::array<char, 20> digits{};
    std::size_t first = digits.size();
    do {
      digits.at(--first) = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number > 0);
    return *this << std::string_view(digits.data() + first, digits.size() - first);
  }
  void print() const {  // what cannot be written is lost: the process ends
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, bytes_.data(), length_);
  }

 private:
  std::array<char, 6144> bytes_{};
  std::size_t length_ = 0;
};

void on_crash(int signal, siginfo_t* info, void*) {
  const bool is_fault = info->si_code > 0;  // the kernel's, with an address
  const char* const path = signal == SIGBUS && is_fault ? path_at(info->si_addr) : nullptr;
  Line line;
  line << "event=crash " << who.data();
  if (const std::int64_t step = current_step; step >= 0) line << " in step " << step;
  if (path != nullptr) {
    line << ": " << path << " was cut short while it was mapped, or its disk failed\n";
  } else {
    line << ": ended by " << name_of_signal(signal) << "\n";
  }
  line.print();
  if (path != nullptr) _exit(static_cast<int>(ExitCode::kCorruptInput));
  sigaction(signal, &earlier.at(static_cast<std::size_t>(signal)), nullptr);
  raise(signal);  // comes when this handler returns
}

template <std::size_t kSize>
void copy_text(const std::string& text, std::array<char, kSize>& to) {
  const std::size_t count = std::min(text.size(), kSize - 1);
  std::memcpy(to.data(), text.data(), count);
  to.at(count) = '\0';
}

Mapping* free_mapping() {
  for (Mapping* mapping = mappings; mapping != nullptr; mapping = mapping->next) {
    if (mapping->base == nullptr) return mapping;
  }
  auto* const added = new Mapping;
  added->next = mappings;
  mappings = added;
  return added;
}

}  // namespace

void install(const std::string& name) {
  copy_text(name, who);
  // A stack of its own: the thread's may be what overflowed.
  static std::array<std::byte, 65536> stack;
  const stack_t alternative{.ss_sp = stack.data(), .ss_flags = 0, .ss_size = stack.size()};
  sigaltstack(&alternative, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_crash;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (const int signal : kSignals) {
    sigaction(signal, &action, &earlier.at(static_cast<std::size_t>(signal)));
  }
}

void note_step(std::int64_t step) { current_step = step; }

MappedFile::MappedFile(const void* base, std::size_t size, const std::string& path) {
  const std::lock_guard lock(mappings_mutex);
  mapping_ = free_mapping();
  mapping_->size = size;
  copy_text(path, mapping_->path);
  mapping_->base = static_cast<const std::byte*>(base);
}

MappedFile::~MappedFile() { mapping_->base = nullptr; }

const char* path_at(const void* address) {
  for (const Mapping* mapping = mappings; mapping != nullptr; mapping = mapping->next) {
    const std::byte* const base = mapping->base;
    if (base != nullptr && address >= base && address < base + mapping->size) {
      return mapping->path.data();
    }
  }
  return nullptr;
}

}  // namespace ttt::crash
