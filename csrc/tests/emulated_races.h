// Removes one barrier of the kernels at a time and requires that ThreadSanitizer, the emulation or
// the results notice. For programs built with -fsanitize=thread.
#pragma once

#include <cstdlib>
#include <exception>

#include "emulated_rows.h"
#include "emulation/device.h"

namespace autodeco::tests {

// Without an argument: all barriers in place, then a process per removed barrier. run_paths returns
// EXIT_SUCCESS or EXIT_FAILURE.
inline int remove_every_barrier(int count, char** values, int (*run_paths)()) {
  if (count > 1) {
    emulation::device.removed_site = std::atoi(values[1]);
    try {
      return run_paths();
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
      return EXIT_FAILURE;
    }
  }
  if (run_paths() != EXIT_SUCCESS) return EXIT_FAILURE;
  const int num_sites = emulation::device.num_sites;
  int missed = 0;
  for (int site = 0; site < num_sites; ++site) {
    const std::string command = "TSAN_OPTIONS=halt_on_error=1:exitcode=66 " +
                                std::string(values[0]) + " " + std::to_string(site) +
                                " >/dev/null 2>&1";
    const bool noticed = std::system(command.c_str()) != 0;
    const std::string file = emulation::device.sites[site].file;
    std::printf("%s without the barrier at %s:%u\n", noticed ? "caught " : "MISSED ",
                file.substr(file.rfind('/') + 1).c_str(), emulation::device.sites[site].line);
    missed += !noticed;
  }
  std::printf("emulated races: %d barriers, %d removed without notice\n", num_sites, missed);
  return missed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace autodeco::tests
