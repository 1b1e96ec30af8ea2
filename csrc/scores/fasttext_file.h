// A supervised fastText model as it lies in a `.bin` (version 11 or 12) or a quantised `.ftz`.
//
// Little-endian, without padding: i32 magic 793712314; i32 version; the settings (i32 dim, ws, epoch, minCount, neg,
// wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate; f64 t); the dictionary (i32 size, words, labels; i64
// tokens, i64 P pruned entries or -1; entries: text, byte 0, i64 count, i8 type; P x (i32 bucket, i32 row)); u8 whether
// the input matrix is quantised, the input matrix; u8 whether the output matrix is, the output matrix.
// A dense matrix: i64 rows, i64 columns, f32 row by row. A quantised one: see QuantisedRows in fasttext_file.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "model_input.h"

namespace scores {

enum class Loss : std::int32_t { hierarchical = 1, negative_sampling = 2, softmax = 3, one_vs_all = 4 };

struct Settings {
  std::int32_t dim, word_ngrams, bucket, min_characters, max_characters;
  Loss loss;
  bool has_subwords() const { return max_characters > 0; }
  bool has_buckets() const { return word_ngrams > 1 || has_subwords(); }
};

// Rows of a matrix, read from the file when they are asked for: memory holds one of them, or the quantised codes.
class Rows {
 public:
  virtual ~Rows() = default;
  virtual void for_each(const std::function<void(std::int64_t row, const float* values)>& visit) = 0;
  std::int64_t count = 0, columns = 0;
};

struct FastTextFile {
  Settings settings;
  std::vector<std::string> words, labels;
  std::vector<std::int64_t> label_counts;
  bool is_pruned = false;                                       // buckets that are not in `kept_buckets` have no row
  std::unordered_map<std::int32_t, std::int32_t> kept_buckets;  // bucket -> row after the words'
  std::unique_ptr<Rows> input, output;                          // words + buckets, labels: rows of dim
};

// Throws FormatError, or std::system_error where the system refuses the file. No size in the file is believed before
// the file is long enough for it.
FastTextFile read_fasttext(const std::string& path);

}  // namespace scores
