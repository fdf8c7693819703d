// A heap for large tensors alone, which PyTorch's CPU allocations go to once it is installed.
//
// Training takes and frees the same few gigabytes at every step. In malloc's heap other things come to lie between
// them (code that oneDNN makes for every new size, Python's objects), so that freed blocks no longer join and the heap
// grows from step to step; given back to the kernel instead, every page would have to be mapped and cleared anew. Here
// nothing lives longer than a step but gradients and optimizer state: freed neighbours join again, and what a step
// needs is what the largest step needs.
//
// Blocks are whole pages of one reserved range of addresses, in best fit; behind the last one in use lies memory that
// was never touched. Small tensors, and all once the range is used up, go to PyTorch's own allocator.

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kLeastBytes = 1 << 16;  // smaller tensors would leave too much of their last page unused

class TensorHeap final : public c10::Allocator {
 public:
  TensorHeap(char* begin, size_t bytes) : begin_(begin), end_(begin + bytes), top_(begin) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes >= kLeastBytes) {
      if (char* block = take((bytes + kPage - 1) / kPage * kPage)) {
        return {block, block, &give_back, c10::Device(c10::DeviceType::CPU)};
      }
    }
    void* outside = c10::GetDefaultCPUAllocator()->raw_allocate(bytes);
    return {outside, outside, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* dest, const void* src, size_t count) const override { std::memcpy(dest, src, count); }

  size_t extent() {
    std::lock_guard<std::mutex> guard(lock_);
    return most_ - begin_;
  }

 private:
  using Free = std::map<char*, size_t>;  // by address; no two are neighbours, and none ends at top_

  static void give_back(void* block);

  bool holds(const char* block) const { return begin_ <= block && block < end_; }

  // Returns null where nothing is left.
  char* take(size_t bytes) {
    std::lock_guard<std::mutex> guard(lock_);
    char* block = top_;
    auto best = by_size_.lower_bound({bytes, nullptr});
    if (best != by_size_.end()) {
      block = best->second;
      size_t rest = best->first - bytes;
      erase(free_.find(block));
      if (rest > 0) insert(block + bytes, rest);
    } else if (bytes > static_cast<size_t>(end_ - top_)) {
      return nullptr;
    } else {
      top_ += bytes;
      most_ = std::max(most_, top_);
    }
    used_[block] = bytes;
    return block;
  }

  void put(char* block) {
    std::lock_guard<std::mutex> guard(lock_);
    auto entry = used_.find(block);
    size_t bytes = entry->second;
    used_.erase(entry);
    auto after = free_.lower_bound(block);
    if (after != free_.end() && after->first == block + bytes) {
      bytes += after->second;
      after = erase(after);
    }
    if (after != free_.begin()) {
      auto before = std::prev(after);
      if (before->first + before->second == block) {
        block = before->first;
        bytes += before->second;
        erase(before);
      }
    }
    if (block + bytes == top_) {
      top_ = block;
    } else {
      insert(block, bytes);
    }
  }

  void insert(char* block, size_t bytes) {
    free_[block] = bytes;
    by_size_.insert({bytes, block});
  }

  Free::iterator erase(Free::iterator entry) {
    by_size_.erase({entry->second, entry->first});
    return free_.erase(entry);
  }

  char *begin_, *end_;
  char* top_;             // everything from here on is free
  char* most_ = begin_;   // the furthest that top_ has been
  Free free_;
  std::set<std::pair<size_t, char*>> by_size_;  // the same blocks, smallest first
  std::map<char*, size_t> used_;
  std::mutex lock_;
};

TensorHeap* heap = nullptr;  // lives as long as the process, as tensors may

void TensorHeap::give_back(void* block) {
  if (heap->holds(static_cast<char*>(block))) {
    heap->put(static_cast<char*>(block));
  } else {
    c10::GetDefaultCPUAllocator()->raw_deleter()(block);
  }
}

}  // namespace

extern "C" {

int lorakeet_is_supported() { return 1; }

// Reserves `bytes` of addresses, which cost nothing until they are written to, and sends large tensors there from now
// on. Returns 0 where the system does not let as many be reserved.
int lorakeet_install_tensor_heap(size_t bytes) {
  if (heap) return 1;
  void* range = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return 0;
  heap = new TensorHeap(static_cast<char*>(range), bytes);
  c10::SetAllocator(c10::DeviceType::CPU, heap, /*priority=*/1);
  return 1;
}

// The most bytes, from the first block to the end of the last, that were ever in use at once.
size_t lorakeet_tensor_heap_extent() { return heap ? heap->extent() : 0; }
}
