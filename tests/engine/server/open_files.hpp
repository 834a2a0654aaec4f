// OpenFiles: takes the lowest numbers that files and sockets can have, while it lives.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <stdexcept>
#include <vector>

namespace engine_test {

class OpenFiles {
 public:
  explicit OpenFiles(int num_files) {
    getrlimit(RLIMIT_NOFILE, &usual_);
    rlimit more = usual_;
    more.rlim_cur = usual_.rlim_max;
    setrlimit(RLIMIT_NOFILE, &more);
    while (static_cast<int>(files_.size()) < num_files) {
      files_.push_back(dup(STDERR_FILENO));
      if (files_.back() < 0) throw std::runtime_error("the system lets a process open fewer files");
    }
  }
  ~OpenFiles() {
    for (const int file : files_) close(file);
    setrlimit(RLIMIT_NOFILE, &usual_);
  }
  /// Does the system let a process open so many? Containers may not.
  static bool are_allowed(int num_files) {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_max >= static_cast<rlim_t>(num_files);
  }
  OpenFiles(const OpenFiles&) = delete;
  OpenFiles& operator=(const OpenFiles&) = delete;

 private:
  rlimit usual_{};
  std::vector<int> files_;
};

}  // namespace engine_test
