// Connected components by union-find, 8 bytes a node. A component's label is the smallest of its nodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dedup {

class Components {
 public:
  explicit Components(std::uint64_t nodes);

  std::uint64_t nodes() const { return parents_.size(); }
  // edges[2 i], edges[2 i + 1] are joined. Throws std::invalid_argument for a node that does not exist, before any of these
  // edges counts.
  void add(const std::uint64_t* edges, std::size_t count);
  // Of the nodes [first, last).
  void labels(std::uint64_t first, std::uint64_t last, std::uint64_t* labels);

 private:
  std::uint64_t root(std::uint64_t node);

  std::vector<std::uint64_t> parents_;  // never larger than the node itself
};

}  // namespace dedup
