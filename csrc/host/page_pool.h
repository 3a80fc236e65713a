// Reference-counted KV pages and the branches that own them. Plain C++, no torch, no Python.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ttc {

// The pool has fewer free pages than a request needs. The pool is as it was before the request.
class OutOfPages : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Fills the first `num_tokens` positions of page `dst_page` from `src_page`, in every layer.
struct PageCopy {
  int32_t src_page;
  int32_t dst_page;
  int32_t num_tokens;
};

class Branch;

// A fixed number of pages, shared by branches.
//
//   page_size = 4                            pages          references
//
//   prompt   [a b c d|e f . .]               0: a b c d     3   prompt, left, right
//               \        \                   1: e f . .     1   prompt
//   left     [a b c d|e f g .]    (fork)     2: e f g .     1   left
//   right    [a b c d|e f h i]    (fork)     3: e f h i     1   right
//
// fork() copies page numbers, never tokens. Page 1 was shared by all three until left and right
// appended: the first append into a shared, half-full page takes a new page and queues the copy of
// the tokens already there. The owner that is left alone with a page appends in place.
//
// The pool moves page numbers only. Queued copies are handed out by take_copies() and have to run
// before anything is written to the caches, because the slots that append() returned lie in their
// destinations; and tokens have to be written before a fork of their branch is appended to, because
// the copy takes what the page holds. Until a copy is taken its source page is held back from
// reuse, even if no branch owns it any longer; a copy whose destination was freed is dropped.
// Not thread-safe.
class PagePool : public std::enable_shared_from_this<PagePool> {
 public:
  // Branches keep their pool alive, so a pool lives in a shared_ptr.
  static std::shared_ptr<PagePool> create(int64_t num_pages, int64_t page_size);

  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  int64_t num_pages() const { return static_cast<int64_t>(refs_.size()); }
  int64_t page_size() const { return page_size_; }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }

  std::unique_ptr<Branch> new_branch();

  // Appends n_tokens to every branch, or to none: the slots, branch by branch.
  std::vector<int32_t> append_all(const std::vector<Branch*>& branches, int64_t n_tokens);

  // Row-major [branches, max_pages], -1 behind the last page of a branch; sets max_pages.
  std::vector<int32_t> block_tables(const std::vector<Branch*>& branches, int64_t* max_pages) const;

  // The queued copies, oldest first. They take effect in this order: a page may be the destination
  // of one and the source of a later one, when a branch was forked before its copy was taken.
  std::vector<PageCopy> take_copies();

  // Recounts everything from the branches; throws std::runtime_error at the first difference.
  void check_integrity() const;

 private:
  friend class Branch;

  PagePool(int64_t num_pages, int64_t page_size);

  void enlist(Branch* branch);
  void delist(Branch* branch);
  void check_own(const Branch& branch, const char* op) const;

  int32_t take_page();
  void drop_ref(int32_t page);
  void retire_if_unused(int32_t page);
  bool appends_into_shared_page(const Branch& branch, int32_t detached) const;
  int32_t copy_on_write(int32_t page, int32_t num_tokens);
  void append_unchecked(Branch& branch, int64_t n_tokens, std::vector<int32_t>& slots);
  std::vector<int32_t> append(const std::vector<Branch*>& branches, int64_t n_tokens,
                              const char* op);

  int64_t page_size_;
  std::vector<int32_t> refs_;       // branches that own the page
  std::vector<int32_t> holds_;      // queued copies that read the page
  std::vector<int32_t> detaching_;  // scratch of append_all, zero between calls
  std::vector<int32_t> free_;       // a stack
  std::vector<PageCopy> copies_;    // a cancelled copy stays as a hole with dst_page -1
  std::vector<int32_t> copy_into_;  // page -> index in copies_ of the copy that fills it, or -1
  std::vector<Branch*> branches_;   // every branch alive, in no particular order
  int64_t next_branch_id_ = 0;
};

// A sequence of tokens: page i holds its tokens [i * page_size, (i + 1) * page_size).
class Branch {
 public:
  ~Branch();
  Branch(const Branch&) = delete;
  Branch& operator=(const Branch&) = delete;

  int64_t length() const;
  const std::vector<int32_t>& pages() const;

  std::vector<std::unique_ptr<Branch>> fork(int64_t n);
  std::vector<int32_t> append(int64_t n_tokens);
  void truncate(int64_t length);
  void free();

  std::string describe() const;  // for messages; works on a freed branch as well

 private:
  friend class PagePool;

  explicit Branch(std::shared_ptr<PagePool> pool);

  void check_alive(const char* op) const;
  void release() noexcept;

  std::shared_ptr<PagePool> pool_;
  std::vector<int32_t> pages_;
  int64_t length_ = 0;
  int64_t id_ = 0;
  size_t position_ = 0;  // in pool_->branches_
  bool alive_ = true;
};

}  // namespace ttc
