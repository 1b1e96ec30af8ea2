// What the files of a phase hold (megatron_kaiyuan/data/phase.py lists them). The one place of these numbers: the
// builder, the packer and the reader include it, and Python has them from the reader's module.
#pragma once

#include <cstdint>

namespace phase_format {

// An entry of order.bin: dataset << sequence_bits | sequence.
constexpr unsigned sequence_bits = 48;
constexpr std::uint64_t sequence_mask = (std::uint64_t{1} << sequence_bits) - 1;
// The dataset of an entry that holds no tokens of a corpus, only places; datasets are numbered below it.
constexpr std::uint32_t padding_dataset = 65'535;
constexpr std::uint64_t padding_entry = std::uint64_t{padding_dataset} << sequence_bits;
// Entries between two numbers of tokens.bin and of checks.bin: the most that a lookup has to walk.
constexpr std::uint64_t block_entries = 256;

}  // namespace phase_format
