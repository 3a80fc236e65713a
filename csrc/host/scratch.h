// Memory that the planner works in, kept by each thread from plan to plan: fresh pages from the system
// would cost more than the planning.
#pragma once

#include <cstddef>
#include <memory>
#include <memory_resource>
#include <vector>

namespace ttc {

template <class T>
using Vector = std::pmr::vector<T>;

class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Hands out memory that lives as long as this object.
  std::pmr::memory_resource* memory() { return &arena_; }

 private:
  // Counts what did not fit into the kept block.
  class Overflow : public std::pmr::memory_resource {
   public:
    size_t bytes = 0;

   private:
    void* do_allocate(size_t size, size_t align) override {
      bytes += size;
      return std::pmr::new_delete_resource()->allocate(size, align);
    }
    void do_deallocate(void* p, size_t size, size_t align) override {
      std::pmr::new_delete_resource()->deallocate(p, size, align);
    }
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
  };

  std::unique_ptr<std::byte[]> block_;  // borrowed from the thread
  size_t size_;
  Overflow overflow_;
  std::pmr::monotonic_buffer_resource arena_;
};

}  // namespace ttc
