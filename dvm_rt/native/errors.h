// The exception that the client side of the core throws; bind.cpp turns it into the class of dvm_rt.errors that `type`
// names. The device's loop and the machine throw nothing.
#pragma once
#include <concepts>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dvm {

inline void say_part(std::string& out, std::string_view part) { out += part; }
inline void say_part(std::string& out, std::integral auto part) { out += std::to_string(part); }

// Text of parts: say("got ", 3).
template <class... Parts> std::string say(const Parts&... parts) {
  std::string out;
  (say_part(out, parts), ...);
  return out;
}

struct Error : std::exception {
  using Numbers = std::vector<std::pair<const char*, int64_t>>;
  const char* type;  // class in dvm_rt.errors
  std::string message;
  Numbers numbers;   // attributes of the exception
  Error(const char* type, std::string message, Numbers numbers = {})
      : type(type), message(std::move(message)), numbers(std::move(numbers)) {}
  const char* what() const noexcept override { return message.c_str(); }
};

using Failure = std::shared_ptr<const Error>;  // why a value will never exist; shared by everything computed from it
inline Failure failure_of(Error error) { return std::make_shared<Error>(std::move(error)); }

}  // namespace dvm
