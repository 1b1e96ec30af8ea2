#include "fasttext_file.h"

namespace scores {
namespace {

constexpr std::int32_t magic = 793712314, supervised = 3;
constexpr std::int64_t centroids_per_part = 256;
constexpr std::int32_t longest_ngram = 100, largest_dim = 1 << 20;
// The tree of the hierarchical softmax marks nodes that are not made yet by this count.
constexpr std::int64_t most_counts = 1'000'000'000'000'000;

std::uint64_t product(std::int64_t a, std::int64_t b, const char* what) {
  std::int64_t result;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &result))
    throw FormatError(std::string("is damaged: the size of ") + what);
  return static_cast<std::uint64_t>(result);
}

class DenseRows : public Rows {
 public:
  explicit DenseRows(const std::shared_ptr<Input>& file) : file_(file) {
    count = file->number<std::int64_t>();
    columns = file->number<std::int64_t>();
    const std::uint64_t numbers = product(count, columns, "a matrix");
    if (numbers > file->left() / sizeof(float)) file->need(UINT64_MAX);
    start_ = file->position;
    file->skip(numbers * sizeof(float));
  }
  void for_each(const std::function<void(std::int64_t, const float*)>& visit) override {
    std::vector<float> row(static_cast<std::size_t>(columns));
    file_->position = start_;
    for (std::int64_t index = 0; index < count; ++index) {
      file_->read(row.data(), row.size() * sizeof(float));
      visit(index, row.data());
    }
  }

 private:
  std::shared_ptr<Input> file_;
  std::uint64_t start_;
};

// Product quantisation (Jégou et al. 2011): a row's columns lie in parts, each one of 256 centroids of its part.
// i32 dim, parts, width of a part, width of the last part; f32 centroids, part by part.
class Quantiser {
 public:
  Quantiser(Input& file, std::int64_t expected_dim) {
    const auto dim = file.number<std::int32_t>();
    parts = file.number<std::int32_t>();
    width_ = file.number<std::int32_t>();
    last_width_ = file.number<std::int32_t>();
    if (dim != expected_dim || parts < 1 || width_ < 1 || last_width_ < 1 || last_width_ > width_ ||
        (std::int64_t{parts} - 1) * width_ + last_width_ != dim) {
      throw FormatError("is damaged: the parts of a quantised matrix");
    }
    const std::uint64_t numbers = product(dim, centroids_per_part, "a quantised matrix");
    file.need(numbers * sizeof(float));
    centroids_.resize(numbers);
    file.read(centroids_.data(), numbers * sizeof(float));
  }
  void add_row(const std::uint8_t* codes, float norm, float* row) const {
    for (std::int32_t part = 0; part < parts; ++part) {
      const std::int32_t width = part == parts - 1 ? last_width_ : width_;
      const float* centroid =
          centroids_.data() + part * centroids_per_part * width_ + std::int64_t{codes[part]} * width;
      for (std::int32_t column = 0; column < width; ++column) row[part * width_ + column] = norm * centroid[column];
    }
  }
  float first(std::uint8_t code) const { return centroids_[code]; }  // of a quantiser of single numbers

  std::int32_t parts;

 private:
  std::int32_t width_, last_width_;
  std::vector<float> centroids_;
};

// u8 whether norms are apart; i64 rows, columns; i32 S codes; S x u8; the quantiser; with norms: rows x u8, theirs.
class QuantisedRows : public Rows {
 public:
  explicit QuantisedRows(Input& file) {
    const bool has_norms = file.number<std::uint8_t>() != 0;
    count = file.number<std::int64_t>();
    columns = file.number<std::int64_t>();
    read_codes(file, codes_, file.number<std::int32_t>());
    quantiser_ = std::make_unique<Quantiser>(file, columns);
    if (product(count, quantiser_->parts, "a quantised matrix") != codes_.size()) {
      throw FormatError("is damaged: the codes of a quantised matrix");
    }
    if (!has_norms) return;
    read_codes(file, norm_codes_, count);
    norms_ = std::make_unique<Quantiser>(file, 1);
  }
  void for_each(const std::function<void(std::int64_t, const float*)>& visit) override {
    std::vector<float> row(static_cast<std::size_t>(columns));
    for (std::int64_t index = 0; index < count; ++index) {
      const float norm = norms_ ? norms_->first(norm_codes_[static_cast<std::size_t>(index)]) : 1.0F;
      quantiser_->add_row(codes_.data() + index * quantiser_->parts, norm, row.data());
      visit(index, row.data());
    }
  }

 private:
  static void read_codes(Input& file, std::vector<std::uint8_t>& codes, std::int64_t size) {
    file.need(product(size, 1, "a quantised matrix"));
    codes.resize(static_cast<std::size_t>(size));
    file.read(codes.data(), codes.size());
  }

  std::vector<std::uint8_t> codes_, norm_codes_;
  std::unique_ptr<Quantiser> quantiser_, norms_;
};

Settings read_settings(Input& file) {
  if (file.left() < 8 || file.number<std::int32_t>() != magic)
    throw FormatError("is not a fastText model (no such magic number)");
  const auto version = file.number<std::int32_t>();
  if (version != 11 && version != 12)
    throw FormatError("has the fastText format " + std::to_string(version) + "; 11 and 12 are read");
  Settings settings{};
  settings.dim = file.number<std::int32_t>();
  file.skip(4 * sizeof(std::int32_t));  // ws, epoch, minCount, neg: of training
  settings.word_ngrams = file.number<std::int32_t>();
  settings.loss = static_cast<Loss>(file.number<std::int32_t>());
  const auto model = file.number<std::int32_t>();
  settings.bucket = file.number<std::int32_t>();
  settings.min_characters = file.number<std::int32_t>();
  settings.max_characters = file.number<std::int32_t>();
  file.skip(sizeof(std::int32_t) + sizeof(double));  // lrUpdateRate, t: of training
  if (model == 1 || model == 2)
    throw FormatError("holds word vectors, not a classifier; train with fastText's `supervised`");
  if (model != supervised || settings.loss < Loss::hierarchical || settings.loss > Loss::one_vs_all) {
    throw FormatError("is damaged: the model's or the loss's number");
  }
  if (version == 11) settings.max_characters = 0;  // written, but not used then
  const auto is_length = [](std::int32_t value) { return 0 <= value && value <= longest_ngram; };
  if (settings.dim < 1 || settings.dim > largest_dim || !is_length(settings.word_ngrams) ||
      !is_length(settings.min_characters) || !is_length(settings.max_characters) || settings.bucket < 0 ||
      (settings.has_buckets() && settings.bucket == 0)) {
    throw FormatError("is damaged: dim, bucket, wordNgrams, minn or maxn");
  }
  return settings;
}

void read_dictionary(Input& file, FastTextFile& model) {
  const auto size = file.number<std::int32_t>(), words = file.number<std::int32_t>(),
             labels = file.number<std::int32_t>();
  file.skip(sizeof(std::int64_t));
  const auto pruned = file.number<std::int64_t>();
  if (words < 0 || labels < 1 || std::int64_t{words} + labels != size || pruned < -1)
    throw FormatError("is damaged: the size of the dictionary");
  file.need(static_cast<std::uint64_t>(size) * 10);  // bytes of the smallest entry
  std::int64_t counts = 0;
  for (std::int32_t index = 0; index < size; ++index) {
    std::string text = file.text();
    const auto count = file.number<std::int64_t>();
    if (file.number<std::int8_t>() != (index < words ? 0 : 1)) throw FormatError("is damaged: the kind of a word");
    if (index < words) {
      model.words.push_back(std::move(text));
      continue;
    }
    if (count < 0 || count >= most_counts - counts) throw FormatError("is damaged: the count of a label");
    counts += count;
    model.labels.push_back(std::move(text));
    model.label_counts.push_back(count);
  }
  model.is_pruned = pruned >= 0;
  for (std::int64_t index = 0; index < pruned; ++index) {
    const auto bucket = file.number<std::int32_t>(), row = file.number<std::int32_t>();
    if (row < 0 || row >= pruned) throw FormatError("is damaged: the row of a bucket");
    model.kept_buckets[bucket] = row;
  }
}

std::unique_ptr<Rows> read_rows(const std::shared_ptr<Input>& file, bool quantised) {
  if (quantised) return std::make_unique<QuantisedRows>(*file);
  return std::make_unique<DenseRows>(file);
}

}  // namespace

FastTextFile read_fasttext(const std::string& path) {
  const auto file = std::make_shared<Input>(path);
  FastTextFile model;
  model.settings = read_settings(*file);
  read_dictionary(*file, model);
  const bool quantised = file->number<std::uint8_t>() != 0;
  if (model.is_pruned && !quantised)
    throw FormatError("is of a fastText older than 2017-10, whose pruned models are wrong; train it again");
  model.input = read_rows(file, quantised);
  const bool quantised_output = file->number<std::uint8_t>() != 0;
  model.output = read_rows(file, quantised && quantised_output);
  if (file->left() > 0) throw FormatError("has bytes after its end: its header is damaged, or something is appended");
  const std::int64_t buckets = model.is_pruned                ? static_cast<std::int64_t>(model.kept_buckets.size())
                               : model.settings.has_buckets() ? model.settings.bucket
                                                              : 0;
  const auto words = static_cast<std::int64_t>(model.words.size());
  const bool fits = model.is_pruned ? model.input->count == words + buckets : model.input->count >= words + buckets;
  if (!fits || model.input->columns != model.settings.dim || model.output->columns != model.settings.dim ||
      model.output->count != static_cast<std::int64_t>(model.labels.size())) {
    throw FormatError("is damaged: its matrices do not fit its dictionary");
  }
  return model;
}

}  // namespace scores
