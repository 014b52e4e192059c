#pragma once

#include <exception>
#include <string>

namespace lcomp::test {

/// The text of the exception that `call` throws, or "nothing was thrown".
template <class Call>
std::string error_text(Call&& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace lcomp::test
