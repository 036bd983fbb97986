#include "launch/progress_line.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace ttt::launch {

std::string format_count(double value) {
  constexpr std::array kSuffixes = {"", "k", "M", "G", "T", "P"};
  std::size_t power = 0;
  // 999.95 would print as 1000.0.
  while (std::abs(value) >= 999.95 && power + 1 < kSuffixes.size()) {
    value /= 1000.0;
    ++power;
  }
  const int decimals = power == 0 && value == std::floor(value) ? 0
                       : std::abs(value) < 9.995                ? 2
                                                                : 1;
  return fmt::format("{:.{}f}{}", value, decimals, kSuffixes[power]);
}

std::string format_duration(double seconds) {
  const auto total = static_cast<std::int64_t>(std::llround(std::max(seconds, 0.0)));
  if (total < 60) {
    return fmt::format("{}s", total);
  }
  if (total < 3600) {
    return fmt::format("{}m{:02}s", total / 60, total % 60);
  }
  const std::int64_t minutes = total / 60;
  if (minutes < std::int64_t{24} * 60) {
    return fmt::format("{}h{:02}m", minutes / 60, minutes % 60);
  }
  return fmt::format("{}d{:02}h", minutes / 1440, minutes / 60 % 24);
}

namespace {

/// "412 GF/s", "989.0 TF/s": whole numbers below the tera range, where decimals are noise.
std::string format_flops(double value) {
  return value < 1e12 ? fmt::format("{:.{}f} GF/s", value / 1e9, value < 1e11 ? 1 : 0)
                      : fmt::format("{:.1f} TF/s", value / 1e12);
}

std::string format_shares(const Progress& progress) {
  std::string text;
  if (progress.data_share) {
    text += fmt::format("data {:.1f}%", 100 * *progress.data_share);
  }
  if (progress.communication_share) {
    text +=
        fmt::format("{}comm {:.1f}%", text.empty() ? "" : " ", 100 * *progress.communication_share);
  }
  return text;
}

std::string format_rate(const Progress& progress) {
  std::string rate = format_count(*progress.tokens_per_second) + " tok/s";
  if (progress.num_ranks > 1) {
    rate +=
        fmt::format(" ({}/rank)", format_count(*progress.tokens_per_second / progress.num_ranks));
  }
  return rate;
}

}  // namespace

std::string format_progress(const Progress& progress) {
  std::vector<std::string> parts;
  parts.push_back(progress.num_steps > 0
                      ? fmt::format("step {}/{}", progress.step, progress.num_steps)
                      : fmt::format("step {}", progress.step));
  if (progress.loss) {
    parts.push_back(fmt::format("loss {:.4f}", *progress.loss));
    const double perplexity = std::exp(*progress.loss);
    parts.push_back(perplexity < 1e4 ? fmt::format("ppl {:.2f}", perplexity)
                                     : fmt::format("ppl {:.2e}", perplexity));
  }
  if (progress.learning_rate) {
    parts.push_back(fmt::format("lr {:.1e}", *progress.learning_rate));
  }
  if (progress.grad_norm) {
    const int decimals = std::abs(*progress.grad_norm) < 0.1 ? 4 : 2;
    parts.push_back(fmt::format("gnorm {:.{}f}", *progress.grad_norm, decimals));
  }
  if (progress.tokens_per_second) {
    parts.push_back(format_rate(progress));
  }
  if (progress.flops_per_second) {
    parts.push_back(format_flops(*progress.flops_per_second));
    if (progress.peak_flops && *progress.peak_flops > 0) {
      parts.push_back(fmt::format("MFU {:.1f}% of {}",
                                  100 * *progress.flops_per_second / *progress.peak_flops,
                                  format_flops(*progress.peak_flops)));
    }
  }
  if (progress.memory_bytes) {
    constexpr double kGibibyte = 1U << 30U;
    parts.push_back(fmt::format("mem {:.1f} GiB", *progress.memory_bytes / kGibibyte));
  }
  if (const std::string shares = format_shares(progress); !shares.empty()) {
    parts.push_back(shares);
  }
  if (progress.seconds_left) {
    parts.push_back("ETA " + format_duration(*progress.seconds_left));
  }
  return fmt::format("{}", fmt::join(parts, " | "));
}

int terminal_columns(int descriptor) {
  winsize size{};
  if (::isatty(descriptor) == 0) {
    return 0;
  }
  return ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void ProgressLine::show(const Progress& progress) {
  const std::string line = format_progress(progress);
  if (columns_ > 0) {
    out_ << "\r\x1b[2K" << line.substr(0, static_cast<std::size_t>(columns_ - 1)) << std::flush;
    is_open_ = true;
  } else {
    out_ << line << '\n' << std::flush;
  }
}

void ProgressLine::finish() {
  if (is_open_) {
    out_ << '\n' << std::flush;
    is_open_ = false;
  }
}

}  // namespace ttt::launch
