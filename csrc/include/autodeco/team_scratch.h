// Memory for the blocks of a CUDA team, part of the arguments of every row kernel. The CPU needs
// none.
#pragma once

namespace autodeco {

// Global memory of a launch in which several blocks share a row and cannot reach each other's
// shared memory. Null: they can, or a row has one block.
struct TeamScratch {
  char* memory = nullptr;
  int blocks_per_row = 1;  // 2, 4 or 8 where there is memory
};

}  // namespace autodeco
