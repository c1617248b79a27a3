// Removes one barrier of the kernels at a time and requires that ThreadSanitizer, the emulation or
// the results notice. For programs built with -fsanitize=thread.
#pragma once

#include <cstdlib>
#include <exception>

#include "emulated_rows.h"
#include "emulation/device.h"

namespace autodeco::tests {

constexpr const char* kWithoutClusters = "without-clusters";

// Whether a process without this barrier fails.
inline bool is_noticed(const char* program, const emulation::BarrierSite& site,
                       bool with_clusters) {
  const std::string command = "TSAN_OPTIONS=halt_on_error=1:exitcode=66 " + std::string(program) +
                              " " + site.file + " " + std::to_string(site.line) + " " +
                              (with_clusters ? "" : kWithoutClusters) + " >/dev/null 2>&1";
  const bool noticed = std::system(command.c_str()) != 0;
  const std::string file = site.file;
  std::fflush(stdout);
  std::printf("%s without the barrier at %s:%u%s\n", noticed ? "caught " : "MISSED ",
              file.substr(file.rfind('/') + 1).c_str(), site.line,
              with_clusters ? "" : ", no clusters");
  return noticed;
}

// Without an argument: all barriers in place, then a process per removed barrier. What blocks of a
// team meet in is removed once with clusters and once without. run_paths(with_clusters) returns
// EXIT_SUCCESS or EXIT_FAILURE.
inline int remove_every_barrier(int count, char** values, int (*run_paths)(bool)) {
  if (count > 2) {
    emulation::device.removed_file = values[1];
    emulation::device.removed_line = static_cast<unsigned>(std::atoi(values[2]));
    try {
      return run_paths(count == 3);
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
      return EXIT_FAILURE;
    }
  }
  if (run_paths(true) != EXIT_SUCCESS) return EXIT_FAILURE;
  if (run_paths(false) != EXIT_SUCCESS) return EXIT_FAILURE;
  // A process that removes nothing finds nothing.
  if (is_noticed(values[0], {"nowhere", 1, false, true, true}, true)) return EXIT_FAILURE;
  int removed = 0;
  int missed = 0;
  for (int i = 0; i < emulation::device.num_sites; ++i) {
    const emulation::BarrierSite site = emulation::device.sites[i];
    for (const bool with_clusters : {true, false}) {
      // Without clusters, what no launch with them has removed already.
      const bool is_new = site.between_blocks || !site.met_with_clusters;
      if (with_clusters ? !site.met_with_clusters : !site.met_without_clusters || !is_new) continue;
      ++removed;
      missed += !is_noticed(values[0], site, with_clusters);
    }
  }
  std::printf("emulated races: %d barriers removed, %d without notice\n", removed, missed);
  return missed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace autodeco::tests
