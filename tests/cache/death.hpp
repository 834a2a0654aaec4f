// death(): whether an action ends the process, for the assertions in destructors, which cannot throw.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <exception>

namespace pagedkv_test {

/// Runs the action in a child process; true if it is ended by std::terminate.
template <class Action>
bool dies(Action action) {
  constexpr int terminated = 42;
  const pid_t child = fork();
  if (child == 0) {
    std::set_terminate([] { _exit(terminated); });
    action();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == terminated;
}

}  // namespace pagedkv_test
