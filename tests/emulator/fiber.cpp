#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {

namespace {

constexpr size_t kPage = 4096;
std::vector<char*> free_stacks;

char* take_stack() {
  if (!free_stacks.empty()) {
    char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  void* memory =
      mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kPage, PROT_NONE);
  return static_cast<char*>(memory) + kPage;
}

}  // namespace

#if defined(__x86_64__)

// Saves what a called function must preserve, changes stacks, and returns on the other one.
extern "C" void emu_switch_stacks(void** save, void* load);
asm(R"(
.text
.globl emu_switch_stacks
.type emu_switch_stacks, @function
emu_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_stacks, .-emu_switch_stacks
)");

static void prepare(Fiber& fiber, void (*entry)()) {
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 1;
  *top = nullptr;                              // where entry would return to
  *--top = reinterpret_cast<void*>(entry);     // popped by ret
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the saved registers
  fiber.context = top;
}

static void change(Fiber& from, Fiber& to) { emu_switch_stacks(&from.context, to.context); }

#else

static void prepare(Fiber& fiber, void (*entry)()) {
  if (!fiber.context) fiber.context = new ucontext_t;
  auto* context = static_cast<ucontext_t*>(fiber.context);
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}

static void change(Fiber& from, Fiber& to) {
  if (!from.context) from.context = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from.context), static_cast<ucontext_t*>(to.context));
}

#endif

#if defined(__SANITIZE_ADDRESS__)
static const void* thread_stack = nullptr;  // of the OS thread, learnt on the first switch away from it
static size_t thread_stack_bytes = 0;
#endif

void fiber_start(Fiber& fiber, void (*entry)()) {
  if (!fiber.stack) fiber.stack = take_stack();
  prepare(fiber, entry);
}

void fiber_switch(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.sanitizer_stack, to.stack ? to.stack : thread_stack,
                                 to.stack ? kStackBytes : thread_stack_bytes);
  change(from, to);
  __sanitizer_finish_switch_fiber(from.sanitizer_stack, nullptr, nullptr);
#else
  change(from, to);
#endif
}

void fiber_entered() {
#if defined(__SANITIZE_ADDRESS__)
  const void* left;
  size_t left_bytes;
  __sanitizer_finish_switch_fiber(nullptr, &left, &left_bytes);
  if (!thread_stack) thread_stack = left, thread_stack_bytes = left_bytes;  // the first entry comes from there
#endif
}

void fiber_stop(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // frames that were abandoned
#endif
  free_stacks.push_back(fiber.stack);
  fiber.stack = nullptr;
}

}  // namespace emu
