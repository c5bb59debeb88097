// Problem: the C library gives large pieces of memory back to the system when they are freed, by how its heap happens to lie. Results
//   of some megabytes, made again in every call, then cost a page fault for every 4 KB.
// Solution: large blocks that are freed are kept for the next result of their size, up to a limit.
// Usage: take(bytes), nullptr if there is no memory; give(block, bytes) with the same number, from any thread.
#pragma once

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

namespace metafast {

class Blocks {
 public:
  static constexpr std::align_val_t kAlign{64};

  static void* take(size_t bytes) {
    if (bytes >= kLarge)
      if (std::unique_lock lock(instance().in_use_, std::try_to_lock); lock) {  // never waits: forks may copy it locked
        auto& kept = instance().kept_;
        const auto of_size = [&](const Block& block) { return block.bytes == bytes; };
        if (const auto found = std::find_if(kept.rbegin(), kept.rend(), of_size); found != kept.rend()) {
          void* const memory = found->memory;
          instance().total_ -= bytes;
          kept.erase(std::next(found).base());
          return memory;
        }
      }
    return ::operator new(bytes, kAlign, std::nothrow);
  }

  static void give(void* memory, size_t bytes) {
    if (bytes >= kLarge && bytes <= kAtMost)
      if (std::unique_lock lock(instance().in_use_, std::try_to_lock); lock) {
        auto& kept = instance().kept_;
        for (; instance().total_ + bytes > kAtMost || kept.size() == kCount; kept.erase(kept.begin())) {
          instance().total_ -= kept.front().bytes;
          ::operator delete(kept.front().memory, kAlign);
        }
        instance().total_ += bytes;
        kept.push_back({memory, bytes});
        return;
      }
    ::operator delete(memory, kAlign);
  }

 private:
  static constexpr size_t kLarge = size_t(128) << 10, kAtMost = size_t(32) << 20, kCount = 64;
  struct Block {
    void* memory;
    size_t bytes;
  };

  Blocks() { kept_.reserve(kCount); }
  static Blocks& instance() {
    static Blocks* const all = new Blocks;  // never destroyed: tensors may outlive static destruction
    return *all;
  }

  std::mutex in_use_;
  std::vector<Block> kept_;  // oldest first
  size_t total_ = 0;
};

}  // namespace metafast
