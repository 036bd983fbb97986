#include "launch/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "core/base/error.h"
#include "launch/metrics_log.h"
#include "tests/launch/temporary_directory.h"

namespace ttt::launch {
namespace {

using test::TemporaryDirectory;
using testing::HasSubstr;
using testing::Not;

std::string report_of(const TemporaryDirectory& directory, const std::string& configuration) {
  write_report(directory.path(), configuration);
  return read_file(directory.file("report.html"));
}

std::size_t occurrences(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

void write_run(const TemporaryDirectory& directory) {
  MetricsLog log(directory.file("metrics.jsonl"), 0);
  log.write({0, "run", {{"parameters", std::int64_t{125342208}}, {"num_ranks", std::int64_t{8}}}});
  for (std::int64_t step = 1; step <= 400; ++step) {
    const auto s = static_cast<double>(step);
    log.write({step,
               "train",
               {{"loss", 2.5 + 7 * std::exp(-s / 40)},
                {"learning_rate", 1e-3},
                {"grad_norm", 0.4},
                {"tokens", step * 1000},
                {"tokens_per_second", 1.31e6},
                {"wall_seconds", s}}});
    if (step % 100 == 0) {
      log.write({step, "eval", {{"loss", step == 300 ? 2.25 : 3.0}}});
    }
  }
}

TEST(Report, ShowsHeadlineNumbersAndPlots) {
  const TemporaryDirectory directory;
  write_run(directory);
  const std::string html = report_of(directory, "");
  for (const char* text : {"<b>2.5003</b><span>final training loss (step 400)",
                           "<b>2.2500</b><span>best validation loss", "(step 300), perplexity 9.49",
                           "<b>125.3M</b><span>parameters", "<b>400.0k</b><span>training",
                           "<b>1.31M</b><span>tokens a second", "<b>6m40s</b><span>wall time",
                           "<b>8</b><span>ranks"}) {
    EXPECT_THAT(html, HasSubstr(text));
  }
  for (const char* title : {"Training loss", "Loss after the first tenth", "Validation loss",
                            "Learning rate", "Gradient norm before clipping", "Throughput"}) {
    EXPECT_THAT(html, HasSubstr(std::string(">") + title + "</text>"));
  }
  EXPECT_EQ(occurrences(html, "<svg"), 6U);
  EXPECT_EQ(occurrences(html, "</svg>"), 6U);
}

TEST(Report, DrawsEvaluationTablesWhenPresent) {
  const TemporaryDirectory directory;
  write_run(directory);
  directory.write("loss_by_position.csv",
                  "position,loss,perplexity,tokens\n0,5.0,148.4,8\n1,4.0,54.6,8\n2,3.5,33.1,8\n");
  directory.write("inner_loss.csv",
                  "layer,position,before,after\n0,0,1,0.5\n0,1,0.9,0.4\n1,0,2,1\n1,1,nan,1\n");
  const std::string html = report_of(directory, "");
  EXPECT_THAT(html, HasSubstr("Loss by position in the context"));
  EXPECT_THAT(html, Not(HasSubstr(">tokens<")));  // a count has no place on an axis of losses
  EXPECT_THAT(html, HasSubstr("Inner loss of all layers: after"));
  EXPECT_THAT(html, HasSubstr(">Layer 0</text>"));
  EXPECT_THAT(html, HasSubstr(">Layer 1</text>"));
  EXPECT_EQ(occurrences(html, "<svg"), 10U);
}

TEST(Report, FlattensAndEscapesTheConfiguration) {
  const TemporaryDirectory directory;
  write_run(directory);
  const std::string html =
      report_of(directory,
                "name: \"a <script> & b\"\n# a comment\nmodel {\n"
                "  hidden_size: 768\n  ttt {\n    rope: true\n  }\n}\nseed: 3\n");
  EXPECT_THAT(html, HasSubstr("<h1>a &lt;script&gt; &amp; b</h1>"));
  EXPECT_THAT(html, HasSubstr("<tr><td>model.hidden_size</td><td>768</td></tr>"));
  EXPECT_THAT(html, HasSubstr("<tr><td>model.ttt.rope</td><td>true</td></tr>"));
  EXPECT_THAT(html, HasSubstr("<tr><td>seed</td><td>3</td></tr>"));
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("a comment")));
}

TEST(Report, NeedsNothingFromOutside) {
  const TemporaryDirectory directory;
  write_run(directory);
  const std::string html = report_of(directory, "");
  for (const char* text : {"src=", "href=", "url(", "@import"}) {
    EXPECT_THAT(html, Not(HasSubstr(text)));
  }
}

TEST(Report, RunsThatFailedEarlyHaveAReportToo) {
  const TemporaryDirectory directory;
  directory.write("metrics.jsonl", "");
  EXPECT_THAT(report_of(directory, "seed: 1"), HasSubstr("</html>"));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  MetricsLog(directory.file("metrics.jsonl"), 0).write({1, "train", {{"loss", nan}}});
  EXPECT_THAT(report_of(directory, ""), HasSubstr("<b>nan</b><span>final training loss"));
}

TEST(Report, DamagedTablesAreNamed) {
  const TemporaryDirectory directory;
  write_run(directory);
  const auto message_of = [&](const std::string& csv) -> std::string {
    directory.write("loss_by_position.csv", csv);
    try {
      write_report(directory.path(), "");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kCorruptInput);
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message_of("place,loss\n1,2\n"), HasSubstr("there is no column 'position'"));
  EXPECT_THAT(message_of("position,place\n1,2\n"), HasSubstr("there is no column 'loss'"));
  EXPECT_THAT(message_of("position,loss\n1,2\n3\n"),
              HasSubstr("loss_by_position.csv:3: 1 fields, the header has 2"));
  EXPECT_THAT(message_of("position,loss\n1,two\n"), HasSubstr(":2: 'two' is not a number"));
}

TEST(Report, MissingMetricsAreMissingInput) {
  const TemporaryDirectory directory;
  try {
    write_report(directory.path(), "");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kMissingInput);
  }
}

}  // namespace
}  // namespace ttt::launch
