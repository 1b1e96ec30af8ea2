#include "signer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "shingles.h"

namespace dedup {
namespace {

// The default's 64-bit hashes are permuted by their higher half.
void permuted_half(const std::vector<std::uint64_t>& hashes, std::vector<std::uint32_t>& halves) {
  halves.resize(hashes.size());
  std::transform(hashes.begin(), hashes.end(), halves.begin(),
                 [](std::uint64_t hash) { return static_cast<std::uint32_t>(hash >> 32); });
}
void permuted_half(const std::vector<std::uint64_t>& hashes, std::vector<std::uint64_t>& same) { same = hashes; }

// Eight at a time, the last ones with zeros after them, which are in no text.
void add_bytes(Digest& digest, const std::uint8_t* bytes, std::size_t size) {
  for (std::size_t at = 0; at < size; at += 8) {
    std::uint64_t block = 0;
    std::memcpy(&block, bytes + at, std::min<std::size_t>(8, size - at));
    digest.add(block);
  }
}

template <typename Number>
void sign_all(const Texts& texts, const Shingler& shingler, const Permutations<Number>& permutations, Number* minima,
              std::uint32_t* shingles, std::uint64_t* digests) {
  Document document;
  std::vector<Number> hashes;
  for (std::size_t i = 0; i < texts.count(); ++i) {
    shingler(texts.text(i), texts.size(i), document);
    permuted_half(document.shingles, hashes);
    permutations(hashes, minima + i * permutations.size());
    constexpr std::size_t most = std::numeric_limits<std::uint32_t>::max();
    shingles[i] = static_cast<std::uint32_t>(std::min(hashes.size(), most));
    std::copy_n(document.digest.begin(), 2, digests + 2 * i);
  }
}

}  // namespace

Texts::Texts(const std::int64_t* offsets, std::size_t count, const std::uint8_t* data, std::size_t bytes)
    : offsets_(offsets), count_(count), data_(data) {
  if (offsets[0] < 0) throw std::invalid_argument("offsets begin below 0");
  for (std::size_t i = 0; i < count; ++i)
    if (offsets[i + 1] < offsets[i]) throw std::invalid_argument("offset " + std::to_string(i + 1) + " is below the one before");
  if (static_cast<std::uint64_t>(offsets[count]) > bytes) throw std::invalid_argument("offsets end after the data");
}

Shingler::Shingler(Normalisation normalisation, const WordRules& rules, unsigned ngram)
    : normalisation_(normalisation), reader_(rules), ngram_(ngram) {
  if (ngram == 0) throw std::invalid_argument("an n-gram has at least one word");
}

void Shingler::operator()(const std::uint8_t* text, std::size_t size, Document& document) const {
  Digest digest;
  if (normalisation_ == Normalisation::kaiyuan) {
    document.kaiyuan.read(text, size, ngram_);
    const std::vector<std::uint8_t>& normalised = document.kaiyuan.normalised();
    sha1_prefixes(normalised.data(), document.kaiyuan.shingles(), document.shingles);
    add_bytes(digest, normalised.data(), normalised.size() - sha1_slack);
  } else {
    document.words.clear();
    document.shingles.clear();
    reader_.read(text, size, document.words, digest);
    each_shingle(document.words, ngram_, [&](std::uint64_t hash) { document.shingles.push_back(hash); });
  }
  document.digest = digest.value();
}

void sign(const Texts& texts, const Shingler& shingler, const Permutations<std::uint32_t>& permutations,
          std::uint32_t* minima, std::uint32_t* shingles, std::uint64_t* digests) {
  sign_all(texts, shingler, permutations, minima, shingles, digests);
}

void sign(const Texts& texts, const Shingler& shingler, const Permutations<std::uint64_t>& permutations,
          std::uint64_t* minima, std::uint32_t* shingles, std::uint64_t* digests) {
  sign_all(texts, shingler, permutations, minima, shingles, digests);
}

Sets shingle_sets(const Texts& texts, const Shingler& shingler) {
  Sets sets;
  Document document;
  sets.offsets.push_back(0);
  for (std::size_t i = 0; i < texts.count(); ++i) {
    shingler(texts.text(i), texts.size(i), document);
    std::vector<std::uint64_t>& hashes = document.shingles;
    std::sort(hashes.begin(), hashes.end());
    sets.hashes.insert(sets.hashes.end(), hashes.begin(), std::unique(hashes.begin(), hashes.end()));
    sets.offsets.push_back(static_cast<std::int64_t>(sets.hashes.size()));
  }
  return sets;
}

}  // namespace dedup
