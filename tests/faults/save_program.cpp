// Saves checkpoints as a run does, for tests/run/save_faults_test.py, which makes the system calls fail.
//
//   save_program save RUN STEP     by the thread of an asynchronous save; then only the newest one is kept
//   save_program check RUN         prints the step of the newest checkpoint that verifies and holds its step's numbers

#include <cstdio>
#include <filesystem>
#include <iostream>

#include "core/base/error.h"
#include "data/checkpoint/checkpoint.h"
#include "launch/checkpoint_saver.h"
#include "tests/data/checkpoint_fixture.h"

namespace ttt::data {
namespace {

// Every number of a checkpoint tells its step.
State state_of(std::int64_t step) {
  State state;
  state.fill_with_numbers();
  for (const Tensor* tensor : {&state.values, &state.m, &state.v}) {
    for (float& value : tensor->span<float>()) value *= static_cast<float>(step);
  }
  return state;
}

void save_step(const std::string& run, std::int64_t step) {
  const State state = state_of(step);
  const auto communicator = dist::make_single_communicator();
  launch::CheckpointSaver::Options options;
  options.run_directory = run;
  options.keep_last = 1;
  options.asynchronous = true;
  options.tokenizer = run + "/../tokenizer.model";
  launch::CheckpointSaver saver(options, state.flat(), {{0, state.values.numel()}}, *communicator);
  Stream stream;
  saver.begin(manifest_of(state, step, 1), stream);
  for (const Tensor* tensor : {&state.values, &state.m, &state.v}) fill(*tensor, -1);  // a step
  saver.poll();
  saver.finish();
}

int check(const std::string& run) {
  for (const CheckpointLocation& location : list_checkpoints(run)) {
    const State found;
    load(location.directory, found);  // throws: no checkpoint may be half there
    const State expected = state_of(location.step);
    if (!equal_bits(found.values, expected.values) || !equal_bits(found.m, expected.m) ||
        !equal_bits(found.v, expected.v)) {
      std::cout << location.directory << " holds other numbers\n";
      return 1;
    }
  }
  if (list_checkpoints(run).empty()) return 1;
  std::cout << list_checkpoints(run).front().step << "\n";
  return 0;
}

}  // namespace
}  // namespace ttt::data

int main(int argc, char** argv) {
  try {
    const std::string command = argc > 2 ? argv[1] : "";
    if (command == "save" && argc == 4) {
      ttt::data::save_step(argv[2], std::atol(argv[3]));
      return 0;
    }
    if (command == "check") return ttt::data::check(argv[2]);
    std::cerr << "usage: save_program save RUN STEP | check RUN\n";
    return 64;
  } catch (const ttt::Error& error) {
    std::cerr << error.what() << "\n";
    return static_cast<int>(error.code());
  }
}
