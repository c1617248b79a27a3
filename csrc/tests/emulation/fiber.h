// Fibers: stacks that one operating-system thread switches between, known to the sanitizers.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
// The emulator's own data is shared by all fibers on purpose: ThreadSanitizer must not look at it.
#define AUTODECO_EMULATOR __attribute__((no_sanitize_thread, noinline)) inline
#else
#define AUTODECO_EMULATOR inline
#endif

namespace autodeco::emulation {

#if defined(__SANITIZE_THREAD__)
constexpr bool kDetectsRaces = true;
AUTODECO_EMULATOR void acquire(void* address) { __tsan_acquire(address); }
AUTODECO_EMULATOR void release(void* address) { __tsan_release(address); }
#else
constexpr bool kDetectsRaces = false;
inline void acquire(void*) {}
inline void release(void*) {}
#endif

// An odd number of cache lines: stacks at equal offsets would share cache sets.
constexpr size_t kStackBytes = 64 * 1024 + 320;

struct Fiber {
  char* stack = nullptr;
  void* stack_pointer = nullptr;
  void* race_detector = nullptr;
  void* fake_stack = nullptr;
  bool finished = false;
#if !defined(__x86_64__)
  ucontext_t context;
#endif
};

#if defined(__x86_64__)
// Saves the registers the calling convention preserves, then changes stacks.
__attribute__((naked, noinline)) inline void switch_stacks(void**, void*) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
#endif

AUTODECO_EMULATOR void prepare_fiber(Fiber& fiber, void (*entry)()) {
#if defined(__x86_64__)
  const uintptr_t top = (reinterpret_cast<uintptr_t>(fiber.stack) + kStackBytes) & ~uintptr_t{15};
  void** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;
  *--slot = reinterpret_cast<void*>(entry);
  for (int saved_register = 0; saved_register < 6; ++saved_register) *--slot = nullptr;
  fiber.stack_pointer = slot;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
#if defined(__SANITIZE_THREAD__)
  if (fiber.race_detector != nullptr) __tsan_destroy_fiber(fiber.race_detector);
  fiber.race_detector = __tsan_create_fiber(0);
#endif
  fiber.finished = false;
}

// The switch itself orders no memory accesses: only barriers do.
AUTODECO_EMULATOR void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.race_detector, 1);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from.finished ? nullptr : &from.fake_stack, to.stack, kStackBytes);
#endif
#if defined(__x86_64__)
  switch_stacks(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// A stack that has been left for good carries marks of the sanitizers: they get new ones.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kFreshStacks = true;
#else
constexpr bool kFreshStacks = false;
#endif

inline char* map_stacks(size_t count) {
  void* memory = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

}  // namespace autodeco::emulation
