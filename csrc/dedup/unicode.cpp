#include "unicode.h"

#include <iterator>

namespace dedup {

const std::vector<Attributes>& attributes() {
  static const std::vector<Attributes> all = [] {
    std::vector<Attributes> found;
    found.reserve(code_points);
    for (const std::int32_t run : unicode::attribute_runs)
      found.insert(found.end(), static_cast<std::size_t>(run >> 8), Attributes(static_cast<std::uint8_t>(run & 255)));
    return found;
  }();
  return all;
}

Mapping::Mapping(bool folds) : entries_(code_points) {
  for (std::uint32_t point = 0; point < code_points; ++point) {
    const Attributes own = attributes()[point];
    const bool vanishes = folds ? own.is_dropped() : own.kind() == Kind::mark;
    entries_[point] = vanishes ? 0 : 1u << length_shift | point;
  }
  add(unicode::mapped_by_both, std::size(unicode::mapped_by_both));
  if (folds)
    add(unicode::mapped_by_folding, std::size(unicode::mapped_by_folding));
  else
    add(unicode::mapped_by_lowering, std::size(unicode::mapped_by_lowering));
}

void Mapping::add(const std::int32_t* numbers, std::size_t size) {
  std::int32_t point = 0;
  for (const std::int32_t* last = numbers + size; numbers < last;) {
    const std::int32_t head = *numbers++;
    point += head >> 2;
    const unsigned length = head & 3;
    std::uint32_t& entry = entries_[static_cast<std::size_t>(point)];
    entry = length << length_shift;
    entry |= length == 1 ? static_cast<std::uint32_t>(point + *numbers) : static_cast<std::uint32_t>(sequences_.size());
    if (length > 1)
      for (unsigned i = 0; i < length; ++i) sequences_.push_back(static_cast<std::uint32_t>(point + numbers[i]));
    numbers += length;
  }
}

const Mapping& Mapping::folding() {
  static const Mapping mapping(true);
  return mapping;
}

const Mapping& Mapping::lowering() {
  static const Mapping mapping(false);
  return mapping;
}

}  // namespace dedup
