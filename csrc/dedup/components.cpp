#include "components.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace dedup {

Components::Components(std::uint64_t nodes) : parents_(static_cast<std::size_t>(nodes)) {
  std::iota(parents_.begin(), parents_.end(), std::uint64_t{0});
}

// Path halving (Tarjan, van Leeuwen, JACM 1984): each node on the way is given its grandparent.
std::uint64_t Components::root(std::uint64_t node) {
  while (parents_[node] != node) {
    parents_[node] = parents_[parents_[node]];
    node = parents_[node];
  }
  return node;
}

void Components::add(const std::uint64_t* edges, std::size_t count) {
  for (std::size_t i = 0; i < 2 * count; ++i)
    if (edges[i] >= parents_.size())
      throw std::invalid_argument("an edge has node " + std::to_string(edges[i]) + ", but there are " +
                                  std::to_string(parents_.size()));
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t a = root(edges[2 * i]), b = root(edges[2 * i + 1]);
    parents_[std::max(a, b)] = std::min(a, b);
  }
}

void Components::labels(std::uint64_t first, std::uint64_t last, std::uint64_t* labels) {
  if (first > last || last > parents_.size())
    throw std::invalid_argument("there are no nodes from " + std::to_string(first) + " to " + std::to_string(last));
  for (std::uint64_t node = first; node < last; ++node) labels[node - first] = root(node);
}

}  // namespace dedup
