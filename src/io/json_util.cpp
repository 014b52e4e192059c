#include "io/json_util.h"

#include <unordered_set>

namespace lcomp::io {
namespace {

/// Walks over the text and tells how far the lexer has read, which the SAX interface does not.
class TrackedIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  TrackedIterator(const char* at, const char** read_to) : at_(at), read_to_(read_to) {}
  reference operator*() const { return *at_; }
  TrackedIterator& operator++() {
    *read_to_ = ++at_;
    return *this;
  }
  TrackedIterator operator++(int) {
    TrackedIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const TrackedIterator& other) const { return at_ == other.at_; }
  bool operator!=(const TrackedIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  const char** read_to_;
};

/// "line 3, column 7" of the byte at `offset`.
std::string place_of(std::string_view text, size_t offset) {
  offset = std::min(offset, text.size());
  size_t line = 1;
  size_t column = 1;
  for (const char c : text.substr(0, offset)) {
    if (c == '\n') {
      ++line;
      column = 1;
    } else if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) {  // not inside a UTF-8 sequence
      ++column;
    }
  }
  return fmt::format("line {}, column {}", line, column);
}

/// nlohmann's words without its error number, the place (we print our own) and the raw bytes last read, which
/// may be cut in the middle of a character.
std::string reason_of(const std::string& what) {
  std::string reason = what;
  const size_t column = reason.find("column ");
  const size_t colon = column == std::string::npos ? column : reason.find(": ", column);
  if (colon != std::string::npos) {
    reason.erase(0, colon + 2);
  } else if (const size_t bracket = reason.find("] "); bracket != std::string::npos) {
    reason.erase(0, bracket + 2);
  }
  const size_t read = reason.find("; last read: ");
  if (read != std::string::npos) {
    const size_t expected = reason.rfind("; expected ");
    const bool after = expected != std::string::npos && expected > read;
    reason.erase(read, after ? expected - read : std::string::npos);
  }
  return reason;
}

/// Builds the document from the parser's events and stops at the first breach of our rules.
template <class J>
class Builder final : public nlohmann::json_sax<J> {
 public:
  using Base = nlohmann::json_sax<J>;
  using number_integer_t = typename Base::number_integer_t;
  using number_unsigned_t = typename Base::number_unsigned_t;
  using number_float_t = typename Base::number_float_t;
  using string_t = typename Base::string_t;
  using binary_t = typename Base::binary_t;

  Builder(int max_depth, const char* begin, const char* const* read_to)
      : max_depth_(max_depth), begin_(begin), read_to_(read_to) {}

  bool null() override { return scalar(nullptr); }
  bool boolean(bool v) override { return scalar(v); }
  bool number_integer(number_integer_t v) override { return scalar(v); }
  bool number_unsigned(number_unsigned_t v) override { return scalar(v); }
  bool number_float(number_float_t v, const string_t&) override { return scalar(v); }
  bool string(string_t& v) override { return scalar(std::move(v)); }
  bool binary(binary_t&) override { return false; }  // never sent for text

  bool start_object(size_t) override { return open(J::object()); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(J::array()); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second)
      return stop(fmt::format("must not repeat a key in an object; {} comes twice", quote_name(name)));
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    error_ = "must be valid JSON; " + reason_of(error.what());
    error_offset_ = position > 0 ? position - 1 : 0;
    return false;
  }

  J take() { return std::move(root_); }
  const std::string& error() const { return error_; }
  size_t error_offset() const { return error_offset_; }

 private:
  bool stop(std::string why) {
    error_ = std::move(why);
    const auto read = static_cast<size_t>(*read_to_ - begin_);
    error_offset_ = read > 0 ? read - 1 : 0;
    return false;
  }

  J* insert(J value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    J& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    auto& object = parent.template get_ref<typename J::object_t&>();
    // The key is new (see `key`). ordered_json would look it up by a linear search.
    if constexpr (std::is_same_v<J, OrderedJson>) {
      object.push_back({std::move(key_), std::move(value)});
      return &object.back().second;
    } else {
      return &object.emplace(std::move(key_), std::move(value)).first->second;
    }
  }

  bool scalar(J value) {
    insert(std::move(value));
    return true;
  }

  bool open(J container) {
    if (static_cast<int>(stack_.size()) >= max_depth_)
      return stop(fmt::format("must nest at most {} arrays and objects; it goes deeper", max_depth_));
    stack_.push_back(insert(std::move(container)));
    keys_.emplace_back();
    return true;
  }

  bool close() {
    stack_.pop_back();
    keys_.pop_back();
    return true;
  }

  int max_depth_;
  const char* begin_;
  const char* const* read_to_;
  J root_;
  std::vector<J*> stack_;
  std::vector<std::unordered_set<std::string>> keys_;
  std::string key_;
  std::string error_;
  size_t error_offset_ = 0;
};

template <class J>
J parse(std::string_view text, const std::string& where, const JsonRules& rules) {
  const auto fail = [&](size_t offset, const std::string& message) {
    throw_json_error(rules.error, fmt::format("{}: {}", where, place_of(text, offset)), message);
  };
  if (const auto bad = find_invalid_utf8(text))
    fail(*bad, fmt::format("must be valid UTF-8; byte {} is 0x{:02x}", *bad,
                           static_cast<unsigned char>(text[*bad])));
  // The lexer takes NUL for the end of the text and would not look at what follows.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
    fail(nul, "must be valid JSON; it has a NUL byte");

  const char* begin = text.data();
  const char* end = begin + text.size();
  const char* read_to = begin;
  Builder<J> builder(rules.max_depth, begin, &read_to);
  const bool ok = J::sax_parse(TrackedIterator(begin, &read_to), TrackedIterator(end, &read_to), &builder,
                               nlohmann::detail::input_format_t::json, /*strict=*/true, rules.comments);
  if (!ok) fail(builder.error_offset(), builder.error());
  return builder.take();
}

/// One reference token of a JSON pointer (RFC 6901, section 3).
std::string escaped_token(const std::string& token) {
  std::string out;
  for (const char c : token) {
    if (c == '~') {
      out += "~0";
    } else if (c == '/') {
      out += "~1";
    } else {
      out += c;
    }
  }
  return out;
}

/// "the string \"8\"", "an array", "null": what a value is, for messages.
template <class J>
std::string describe(const J& value) {
  switch (value.type()) {
    case J::value_t::null:
      return "null";
    case J::value_t::object:
      return "an object";
    case J::value_t::array:
      return "an array";
    case J::value_t::string:
      return "the string " + quote_name(value.template get_ref<const std::string&>());
    default:
      return value.dump();
  }
}

}  // namespace

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  size_t i = 0;
  while (i < text.size()) {
    const unsigned char lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    size_t length = 0;
    // Bounds of the second byte; they exclude overlong forms, surrogates and code points above 10FFFF.
    unsigned char low = 0x80;
    unsigned char high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
      length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      length = 3;
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      length = 4;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    } else {
      return i;
    }
    if (text.size() - i < length || byte(i + 1) < low || byte(i + 1) > high) return i;
    for (size_t k = 2; k < length; ++k) {
      if ((byte(i + k) & 0xC0) != 0x80) return i;
    }
    i += length;
  }
  return std::nullopt;
}

std::string quote_name(std::string_view text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

void throw_json_error(ErrorKind kind, const std::string& where, const std::string& message) {
  if (kind == ErrorKind::kConfig) throw ConfigError(where, message);
  throw CorruptFile(where, message);
}

Json parse_json(std::string_view text, const std::string& where, const JsonRules& rules) {
  return parse<Json>(text, where, rules);
}

OrderedJson parse_ordered_json(std::string_view text, const std::string& where, const JsonRules& rules) {
  return parse<OrderedJson>(text, where, rules);
}

template <class J>
void BasicJsonView<J>::fail(const std::string& message) const {
  throw_json_error(error_, pointer_.empty() ? where_ : where_ + ": " + pointer_, message);
}

template <class J>
void BasicJsonView<J>::expected(const std::string& what) const {
  fail(fmt::format("must be {}; it is {}", what, describe(*value_)));
}

template <class J>
BasicJsonView<J> BasicJsonView<J>::child(const J& value, const std::string& token) const {
  return BasicJsonView(value, where_, error_, pointer_ + "/" + escaped_token(token));
}

template <class J>
BasicJsonView<J> BasicJsonView<J>::at(const std::string& key) const {
  if (!value_->is_object()) expected("an object");
  const auto found = value_->find(key);
  if (found == value_->end()) fail(fmt::format("must have the key {}; it is missing", quote_name(key)));
  return child(*found, key);
}

template <class J>
std::optional<BasicJsonView<J>> BasicJsonView<J>::find(const std::string& key) const {
  if (!value_->is_object()) expected("an object");
  const auto found = value_->find(key);
  if (found == value_->end() || found->is_null()) return std::nullopt;
  return child(*found, key);
}

template <class J>
std::vector<std::pair<std::string, BasicJsonView<J>>> BasicJsonView<J>::members() const {
  if (!value_->is_object()) expected("an object");
  std::vector<std::pair<std::string, BasicJsonView>> out;
  for (const auto& [key, value] : value_->items()) out.emplace_back(key, child(value, key));
  return out;
}

template <class J>
std::vector<BasicJsonView<J>> BasicJsonView<J>::elements() const {
  if (!value_->is_array()) expected("an array");
  std::vector<BasicJsonView> out;
  for (const auto& value : *value_) out.push_back(child(value, std::to_string(out.size())));
  return out;
}

template <class J>
std::string BasicJsonView<J>::text() const {
  if (!value_->is_string()) expected("a string");
  return value_->template get<std::string>();
}

template <class J>
bool BasicJsonView<J>::boolean() const {
  if (!value_->is_boolean()) expected("true or false");
  return value_->template get<bool>();
}

template <class J>
double BasicJsonView<J>::number() const {
  if (!value_->is_number()) expected("a number");
  return value_->template get<double>();
}

template <class J>
int64_t BasicJsonView<J>::integer(int64_t min, int64_t max) const {
  if (!value_->is_number_integer()) expected("an integer");
  // Values from 2^63 on are held unsigned.
  const bool fits =
      !value_->is_number_unsigned() || value_->template get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
  const int64_t result = fits ? value_->template get<int64_t>() : 0;
  if (!fits || result < min || result > max) expected(fmt::format("an integer in [{}, {}]", min, max));
  return result;
}

template <class J>
std::vector<int64_t> BasicJsonView<J>::integers(int64_t min, int64_t max) const {
  std::vector<int64_t> out;
  for (const auto& element : elements()) out.push_back(element.integer(min, max));
  return out;
}

template <class J>
std::vector<double> BasicJsonView<J>::numbers() const {
  std::vector<double> out;
  for (const auto& element : elements()) out.push_back(element.number());
  return out;
}

template <class J>
std::vector<std::string> BasicJsonView<J>::texts() const {
  std::vector<std::string> out;
  for (const auto& element : elements()) out.push_back(element.text());
  return out;
}

template <class J>
std::string BasicJsonView<J>::text_or(const std::string& key, std::string fallback) const {
  const auto found = find(key);
  return found ? found->text() : std::move(fallback);
}

template <class J>
bool BasicJsonView<J>::boolean_or(const std::string& key, bool fallback) const {
  const auto found = find(key);
  return found ? found->boolean() : fallback;
}

template <class J>
int64_t BasicJsonView<J>::integer_or(const std::string& key, int64_t fallback) const {
  const auto found = find(key);
  return found ? found->integer() : fallback;
}

template class BasicJsonView<Json>;
template class BasicJsonView<OrderedJson>;

}  // namespace lcomp::io
