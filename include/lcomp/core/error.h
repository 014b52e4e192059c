#pragma once

#include <stdexcept>
#include <string>

namespace lcomp {

/// What went wrong, so that a caller can choose what to do and the command line can choose its exit code.
enum class ErrorKind {
  kInvalidArgument,  ///< a call that breaks a documented precondition
  kConfig,           ///< a job file or a model's config.json that cannot be accepted
  kCorruptFile,      ///< an input file that is absent, unreadable, or breaks the rules of its format
  kNumerical,        ///< mathematics that cannot go on (strict mode, non-finite values)
  kUnsupported,      ///< a valid input that this version does not handle; the message lists what it does
  kResource,         ///< out of disk space or memory budget, or a failing system call
  kInterrupted,      ///< the caller asked to stop; the state on disk can be resumed
  kInternal,         ///< a bug in lcomp
};

/// Base of every exception thrown by the library.
/// The text reads `[where] what must hold; what came`, where `where` is a function, a file, a tensor or a
/// JSON pointer.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& where, const std::string& message)
      : std::runtime_error("[" + where + "] " + message), kind_(kind) {}

  /// The text of `other` as an error of another kind.
  Error(ErrorKind kind, const Error& other) : std::runtime_error(other.what()), kind_(kind) {}

  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

/// One exception type per kind; `throw CorruptFile("model.safetensors", "the header must ...; it has ...")`.
template <ErrorKind K>
class ErrorOf : public Error {
 public:
  ErrorOf(const std::string& where, const std::string& message) : Error(K, where, message) {}
  /// The text of an error of another kind.
  explicit ErrorOf(const Error& other) : Error(K, other) {}
};

using InvalidArgument = ErrorOf<ErrorKind::kInvalidArgument>;
using ConfigError = ErrorOf<ErrorKind::kConfig>;
using CorruptFile = ErrorOf<ErrorKind::kCorruptFile>;
using NumericalError = ErrorOf<ErrorKind::kNumerical>;
using Unsupported = ErrorOf<ErrorKind::kUnsupported>;
using ResourceError = ErrorOf<ErrorKind::kResource>;
using Interrupted = ErrorOf<ErrorKind::kInterrupted>;
using InternalError = ErrorOf<ErrorKind::kInternal>;

}  // namespace lcomp
