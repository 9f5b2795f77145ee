// The exception that the client side of the core throws; bind.cpp turns it into the class of dvm_rt.errors that `type`
// names. The device's loop and the machine throw nothing.
#pragma once
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace dvm {

struct Error : std::exception {
  const char* type;  // class in dvm_rt.errors
  std::string message;
  std::vector<std::pair<const char*, int64_t>> numbers;  // attributes of the exception
  Error(const char* type, std::string message, std::vector<std::pair<const char*, int64_t>> numbers = {})
      : type(type), message(std::move(message)), numbers(std::move(numbers)) {}
  const char* what() const noexcept override { return message.c_str(); }
};

using Failure = std::shared_ptr<const Error>;  // why a value will never exist; shared by everything computed from it

}  // namespace dvm
