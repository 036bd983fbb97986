#include "dist/launch_environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace ttt::dist {
namespace {

using testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

LaunchEnvironment read(const Variables& variables) {
  return read_launch_environment([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

std::string message_of(const Variables& variables, int mpi_size) {
  try {
    check_world_size(read(variables), mpi_size);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "no error";
}

TEST(LaunchEnvironment, NoLauncherIsOneProcess) {
  const LaunchEnvironment environment = read({});
  EXPECT_EQ(environment.rank_variable, "");
  EXPECT_EQ(environment.expected_size, 1);
  EXPECT_EQ(message_of({}, 1), "no error");
}

TEST(LaunchEnvironment, KnowsTheLaunchers) {
  EXPECT_EQ(read({{"OMPI_COMM_WORLD_RANK", "0"}}).rank_variable, "OMPI_COMM_WORLD_RANK");
  EXPECT_EQ(read({{"PMIX_RANK", "1"}}).rank_variable, "PMIX_RANK");
  EXPECT_EQ(read({{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}}).expected_size, 4);
}

TEST(LaunchEnvironment, MpirunInsideSlurmIsMpirun) {
  // Slurm's numbers belong to mpirun's daemon: 2 nodes, 8 ranks.
  const Variables variables = {{"OMPI_COMM_WORLD_RANK", "3"},
                               {"OMPI_COMM_WORLD_SIZE", "8"},
                               {"SLURM_STEP_ID", "0"},
                               {"SLURM_NTASKS", "2"},
                               {"SLURM_PROCID", "1"}};
  EXPECT_EQ(read(variables).expected_size, 8);
  EXPECT_EQ(read(variables).process, 3);
  EXPECT_EQ(message_of(variables, 8), "no error");
}

TEST(LaunchEnvironment, SingletonsUnderSlurmAreAnError) {
  const Variables variables = {
      {"SLURM_STEP_ID", "0"}, {"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "2"}};
  EXPECT_EQ(read(variables).process, 2);
  EXPECT_THAT(message_of(variables, 1), HasSubstr("started 4 processes (SLURM_NTASKS)"));
  EXPECT_THAT(message_of(variables, 1), HasSubstr("use --mpi=pmix"));
  EXPECT_EQ(message_of(variables, 4), "no error");
}

TEST(LaunchEnvironment, SingletonsUnderMpirunAreAnError) {
  EXPECT_THAT(message_of({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "2"}}, 1),
              HasSubstr("started 2 processes (OMPI_COMM_WORLD_SIZE)"));
}

TEST(LaunchEnvironment, TheBatchScriptItselfIsOneProcess) {
  EXPECT_EQ(message_of({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}}, 1), "no error");
  EXPECT_EQ(message_of({{"SLURM_NTASKS", "4"}, {"SLURM_STEP_ID", "4294967290"}}, 1), "no error");
  EXPECT_EQ(
      message_of({{"SLURM_NTASKS", "4"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}}, 1),
      "no error");
}

TEST(LaunchEnvironment, GarbageIsNamed) {
  EXPECT_THAT(message_of({{"OMPI_COMM_WORLD_SIZE", "two"}}, 1),
              HasSubstr("OMPI_COMM_WORLD_SIZE is 'two', not a count"));
}

}  // namespace
}  // namespace ttt::dist
