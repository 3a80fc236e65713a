#include "host/page_pool.h"

#include <algorithm>
#include <limits>

namespace ttc {

namespace {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  auto add = [&out](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>) {
      out += std::to_string(part);
    } else {
      out += part;
    }
  };
  (add(parts), ...);
  return out;
}

void require_not_negative(int64_t value, const char* op, const char* argument) {
  if (value >= 0) return;
  throw std::invalid_argument(text(op, ": ", argument, " must be >= 0, got ", value));
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

std::shared_ptr<PagePool> PagePool::create(int64_t num_pages, int64_t page_size) {
  if (num_pages < 1 || page_size < 1) {
    throw std::invalid_argument(text("PagePool: num_pages and page_size must be >= 1, got ",
                                     num_pages, " and ", page_size));
  }
  // Slots are int32. Dividing keeps the test itself from overflowing.
  if (num_pages > std::numeric_limits<int32_t>::max() / page_size) {
    throw std::invalid_argument(text("PagePool: num_pages * page_size must be below 2^31, got ",
                                     num_pages, " * ", page_size));
  }
  return std::shared_ptr<PagePool>(new PagePool(num_pages, page_size));
}

PagePool::PagePool(int64_t num_pages, int64_t page_size)
    : page_size_(page_size),
      refs_(num_pages, 0),
      holds_(num_pages, 0),
      detaching_(num_pages, 0),
      free_(num_pages),
      copy_into_(num_pages, -1) {
  // The stack hands out page 0 first: young pools fill caches from the front.
  for (int64_t i = 0; i < num_pages; ++i) free_[i] = static_cast<int32_t>(num_pages - 1 - i);
}

std::unique_ptr<Branch> PagePool::new_branch() {
  return std::unique_ptr<Branch>(new Branch(shared_from_this()));
}

void PagePool::enlist(Branch* branch) {
  branch->id_ = next_branch_id_++;
  branch->position_ = branches_.size();
  branches_.push_back(branch);
}

void PagePool::delist(Branch* branch) {
  Branch* last = branches_.back();
  branches_[branch->position_] = last;
  last->position_ = branch->position_;
  branches_.pop_back();
}

void PagePool::check_own(const Branch& branch, const char* op) const {
  branch.check_alive(op);
  if (branch.pool_.get() != this) {
    throw std::invalid_argument(text(op, ": ", branch.describe(), " belongs to another pool"));
  }
}

int32_t PagePool::take_page() {
  const int32_t page = free_.back();
  free_.pop_back();
  refs_[page] = 1;
  return page;
}

void PagePool::drop_ref(int32_t page) {
  --refs_[page];
  retire_if_unused(page);
}

// A page without owners stays out of the free list while a queued copy reads it. Freeing it cancels
// the copy that would have filled it, which may in turn free that copy's source.
void PagePool::retire_if_unused(int32_t page) {
  while (refs_[page] == 0 && holds_[page] == 0) {
    free_.push_back(page);
    if (copy_into_[page] < 0) return;
    PageCopy& copy = copies_[copy_into_[page]];
    copy_into_[page] = -1;
    copy.dst_page = -1;
    page = copy.src_page;
    --holds_[page];
  }
}

// `detached`: owners of the branch's last page that will have left it before this append.
bool PagePool::appends_into_shared_page(const Branch& branch, int32_t detached) const {
  return branch.length_ % page_size_ != 0 && refs_[branch.pages_.back()] - detached > 1;
}

int32_t PagePool::copy_on_write(int32_t page, int32_t num_tokens) {
  // If the page is itself still to be filled, copy from where its tokens come from: copies then
  // stay independent of each other, which a device likes better.
  int32_t src = page;
  if (copy_into_[page] >= 0 && copies_[copy_into_[page]].num_tokens >= num_tokens) {
    src = copies_[copy_into_[page]].src_page;
  }
  const int32_t dst = take_page();
  copy_into_[dst] = static_cast<int32_t>(copies_.size());
  copies_.push_back({src, dst, num_tokens});
  ++holds_[src];
  drop_ref(page);
  return dst;
}

void PagePool::append_unchecked(Branch& branch, int64_t n_tokens, std::vector<int32_t>& slots) {
  if (appends_into_shared_page(branch, 0)) {
    int32_t& last = branch.pages_.back();
    last = copy_on_write(last, static_cast<int32_t>(branch.length_ % page_size_));
  }
  for (int64_t i = 0; i < n_tokens; ++i) {
    const int64_t offset = branch.length_ % page_size_;
    if (offset == 0) branch.pages_.push_back(take_page());
    slots.push_back(static_cast<int32_t>(branch.pages_.back() * page_size_ + offset));
    ++branch.length_;
  }
}

std::vector<int32_t> PagePool::append_all(const std::vector<Branch*>& branches, int64_t n_tokens) {
  return append(branches, n_tokens, "PagePool.append_all");
}

std::vector<int32_t> PagePool::append(const std::vector<Branch*>& branches, int64_t n_tokens,
                                      const char* op) {
  require_not_negative(n_tokens, op, "n_tokens");
  for (const Branch* branch : branches) check_own(*branch, op);
  if (branches.empty() || n_tokens == 0) return {};
  std::vector<Branch*> sorted = branches;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    throw std::invalid_argument(text(op, ": ", (*twice)->describe(), " is given more than once"));
  }

  int64_t needed = 0;
  if (n_tokens > num_pages() * page_size_) {
    needed = ceil_div(n_tokens, page_size_);  // more than there is; the sum below might overflow
  } else {
    for (const Branch* branch : branches) {
      needed += ceil_div(branch->length_ + n_tokens, page_size_) -
                static_cast<int64_t>(branch->pages_.size());
      if (branch->length_ % page_size_ == 0) continue;
      // Of the owners that append into one shared page, the last one left keeps it.
      int32_t& detached = detaching_[branch->pages_.back()];
      if (!appends_into_shared_page(*branch, detached)) continue;
      ++detached;
      ++needed;
    }
    for (const Branch* branch : branches) {
      if (!branch->pages_.empty()) detaching_[branch->pages_.back()] = 0;
    }
  }
  if (needed > num_free()) {
    throw OutOfPages(text(op, ": ", n_tokens, " tokens for ",
                          branches.size() == 1 ? branches[0]->describe()
                                               : text("each of ", branches.size(), " branches"),
                          " need ", needed, " pages, but ", num_free(), " of ", num_pages(),
                          " are free"));
  }

  std::vector<int32_t> slots;
  slots.reserve(branches.size() * n_tokens);
  for (Branch* branch : branches) append_unchecked(*branch, n_tokens, slots);
  return slots;
}

std::vector<int32_t> PagePool::block_tables(const std::vector<Branch*>& branches,
                                            int64_t* max_pages) const {
  size_t width = 0;
  for (const Branch* branch : branches) {
    check_own(*branch, "PagePool.block_tables");
    width = std::max(width, branch->pages_.size());
  }
  std::vector<int32_t> tables(branches.size() * width, -1);
  for (size_t i = 0; i < branches.size(); ++i) {
    std::copy(branches[i]->pages_.begin(), branches[i]->pages_.end(), tables.begin() + i * width);
  }
  *max_pages = static_cast<int64_t>(width);
  return tables;
}

std::vector<PageCopy> PagePool::take_copies() {
  std::vector<PageCopy> taken;
  for (const PageCopy& copy : copies_) {
    if (copy.dst_page < 0) continue;
    taken.push_back(copy);
    copy_into_[copy.dst_page] = -1;
  }
  copies_.clear();
  for (const PageCopy& copy : taken) {
    --holds_[copy.src_page];
    retire_if_unused(copy.src_page);
  }
  return taken;
}

void PagePool::check_integrity() const {
  auto require = [](bool ok, auto&&... parts) {
    if (!ok) throw std::runtime_error(text("PagePool.check_integrity: ", parts...));
  };
  std::vector<int32_t> refs(refs_.size(), 0), holds(refs_.size(), 0), listed(refs_.size(), 0);
  for (const Branch* branch : branches_) {
    const int64_t expected = ceil_div(branch->length_, page_size_);
    require(static_cast<int64_t>(branch->pages_.size()) == expected, branch->describe(), " has ",
            branch->pages_.size(), " pages for ", branch->length_, " tokens, expected ", expected);
    for (const int32_t page : branch->pages_) ++refs[page];
  }
  for (size_t i = 0; i < copies_.size(); ++i) {
    const PageCopy& copy = copies_[i];
    if (copy.dst_page < 0) continue;
    ++holds[copy.src_page];
    require(copy_into_[copy.dst_page] == static_cast<int64_t>(i), "copy ", i, " fills page ",
            copy.dst_page, ", which names copy ", copy_into_[copy.dst_page]);
  }
  for (const int32_t page : free_) ++listed[page];
  for (size_t page = 0; page < refs.size(); ++page) {
    require(refs[page] == refs_[page], "page ", page, " counts ", refs_[page], " owners, but ",
            refs[page], " branches own it");
    require(holds[page] == holds_[page], "page ", page, " counts ", holds_[page],
            " pending reads, but ", holds[page], " queued copies read it");
    const int32_t expected = refs[page] == 0 && holds[page] == 0 ? 1 : 0;
    require(listed[page] == expected, "page ", page, " is ", listed[page],
            " times in the free list, expected ", expected);
  }
}

Branch::Branch(std::shared_ptr<PagePool> pool) : pool_(std::move(pool)) { pool_->enlist(this); }

Branch::~Branch() { release(); }

void Branch::release() noexcept {
  if (!alive_) return;
  // From the back, so that the free stack hands the pages out again in reading order.
  for (; !pages_.empty(); pages_.pop_back()) pool_->drop_ref(pages_.back());
  pool_->delist(this);
  alive_ = false;
}

std::string Branch::describe() const { return text("branch ", id_); }

void Branch::check_alive(const char* op) const {
  if (!alive_) throw std::invalid_argument(text(op, ": ", describe(), " was freed"));
}

int64_t Branch::length() const {
  check_alive("Branch.length");
  return length_;
}

const std::vector<int32_t>& Branch::pages() const {
  check_alive("Branch.pages");
  return pages_;
}

std::vector<std::unique_ptr<Branch>> Branch::fork(int64_t n) {
  check_alive("Branch.fork");
  require_not_negative(n, "Branch.fork", "n");
  std::vector<std::unique_ptr<Branch>> children;
  children.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    children.push_back(pool_->new_branch());
    children.back()->pages_ = pages_;
    children.back()->length_ = length_;
    for (const int32_t page : pages_) ++pool_->refs_[page];
  }
  return children;
}

std::vector<int32_t> Branch::append(int64_t n_tokens) {
  return pool_->append({this}, n_tokens, "Branch.append");
}

void Branch::truncate(int64_t length) {
  check_alive("Branch.truncate");
  if (length < 0 || length > length_) {
    throw std::invalid_argument(text("Branch.truncate: length must be in [0, ", length_, "] for ",
                                     describe(), ", got ", length));
  }
  const size_t kept = static_cast<size_t>(ceil_div(length, pool_->page_size_));
  while (pages_.size() > kept) {
    pool_->drop_ref(pages_.back());
    pages_.pop_back();
  }
  length_ = length;
}

void Branch::free() {
  check_alive("Branch.free");
  release();
}

}  // namespace ttc
